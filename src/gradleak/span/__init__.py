"""The engine of exact recovery by span membership; ``gradleak.attacks.span`` is its door.

The pipeline: reading → candidates → decoder or encoder → noise or beyond → outcome.

    reading      the update and the view as observed layers: column spaces, noise, model mismatch
    candidates   which (token, position) pairs lie in the column space at the first attention
    likelihood   how likely a noisy gradient makes a proposal
    decoder      records prefix by prefix
    encoder      whole sentences at once
    noise        joint search where single tests fail
    beyond       more tokens than hidden dimensions
    outcome      what was found → certificate → reconstruction
    language     language models
    with_prior   update and language model together, with attribution

Must not know any attack, defense or score.
"""
