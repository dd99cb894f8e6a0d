"""Safety as a stack: who checks what, how well each layer does it, and what all of them cost.

The map:

    taxonomy         the hazard categories under their two naming schemes, and those of the small world
    guard_format     the Llama Guard 3 prompt, rendered exactly, and the strict reading of its answer
    guard            a classifier behind that format: P(unsafe) at the first token, against a threshold
    refusals         was a request met, refused, or refused in part? Rules over the answer's words
    safety_metrics   violation and false refusal rates, thresholds, calibration, layers against each other
    redteam          an attack grammar with families, rounds of attack and repair, one family held out
    finetuning       safety prompts for SFT, safety pairs for DPO, the filter before selection
    layers           guard in, guard out, refusals and filter: each alone and all together

Importing the package imports nothing: take the module that you want.
"""
