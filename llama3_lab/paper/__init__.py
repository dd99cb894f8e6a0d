"""The paper in numbers: "The Llama 3 Herd of Models" as data, and what can be computed from it.

The map:

    facts            every figure of the paper that the course uses, with its place: data/paper/facts.yaml
    architecture     a Llama-like model in eight numbers, and its parameters, to the unit
    scale            FLOPs, tokens, hours, energy and money of a training run; table 4
    isoflop          the lowest point of a parabola at one budget, and the power law through such points
    power_law        the paper's law, with both pairs of coefficients; fitting one, with intervals
    surface          L(N, D) = E + A/N^α + B/D^β, and coefficients that were published
    chinchilla       that surface fitted to any table of runs (loss_table), with intervals
    serving          when a small model that is trained for long is the right one
    catalogue        models and GPUs by name
    recipe           what is trained, and how, as far as it decides about memory
    weights          bytes that are there whatever the batch; activations: those that grow with it
    memory           the peak of a recipe, by part and phase, and the largest batch that fits
    advice, costs    what to change first where it does not fit; time and money, as a range
    claims           what the field report says about the paper, and our verdict: data/paper/claims.yaml
    evidence         for each claim that can be computed: a function, and what it says

Nothing here needs torch, and importing the package imports nothing: take the module that you want.
"""
