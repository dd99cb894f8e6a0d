"""Real data for the larger profiles: public benchmarks as prompts, and checkers for free-form answers.

    sources         rows of a local JSONL, JSON, CSV or Parquet file, or of the hub; test splits never train
    gsm8k           worked arithmetic        numerals, final_answers, equations: how an answer is read
    mbpp, humaneval programs with tests      code_blocks, program_checks: how an answer is run
    xstest          harmless prompts that look harmful, for the false refusal rate
    preferences     pairs for the reward model
    checkers        verify(): candidates -> verdicts, as pipeline.verdicts does for the small world
    process_sandbox, process_child, process_judge, process_program, process_values, process_isolation:
                    a Python of its own for what the in-memory interpreter cannot run

Nothing here imports torch.
"""
