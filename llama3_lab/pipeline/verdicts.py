from __future__ import annotations
from llama3_lab.records import Candidate, Prompt, Verdict
from llama3_lab.pipeline.sandbox import run_tests

def check_text(prompt, text):
    p,t=prompt,text; k=p.check.kind
    if k=='rubric': return Verdict('abstain','rubric','')
    if k=='number': ok=t.split('\n')==[*p.check.items,f"Answer: {p.check.answer}"]
    elif k=='chain':
        ch=[p.check.items[0].split(' > ')[0]]+[i.split(' > ')[1] for i in p.check.items]
        ok= t==' > '.join(ch)+f"\nAnswer: {p.check.answer}"
    else: ok=run_tests(t,p.check.items).outcome=='pass'
    return Verdict('pass' if ok else 'fail',k,'')
def verify(cands):
    memo={}
    out=[]
    for c in cands:
        key=(c.prompt.id,c.text)
        if key not in memo: memo[key]=check_text(c.prompt,c.text)
        out.append(memo[key] if c.finished else Verdict('fail',c.prompt.check.kind,'cut off'))
    return out
