"""Token shadowing replaces what it says, and a candidate's possible shadows give the candidate away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import ModelError, SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses.token_shadow import TokenShadow, _representations, shadows
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
CANDIDATES = 20


def subject_of(name: str = "random:bert", loss: str | None = None) -> Subject:
    return load_subject(name, loss=loss, settings=TINY)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of()


def special(subject: Subject) -> Tensor:
    assert subject.tokenizer is not None
    return torch.tensor(sorted(subject.tokenizer.special_ids))


def ids_of(subject: Subject, seed: int, count: int = 3, length: int = 8) -> Tensor:
    """Random ordinary tokens between two special ones."""
    assert subject.tokenizer is not None
    ordinary = torch.tensor([t for t in range(subject.tokenizer.vocab_size) if t not in subject.tokenizer.special_ids])
    ids = ordinary[torch.randint(len(ordinary), (count, length), generator=derive(seed, "ids"))]
    ids[:, 0] = ids[:, -1] = special(subject)[0]
    return ids


def client_of(subject: Subject, ids: Tensor) -> Client:
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, -2:] = False
    labels = torch.arange(len(ids)) % 2
    if subject.loss.name != "classification":
        labels = ids.masked_fill(~mask, -100)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    batch = Batch(inputs=ids, mask=mask, labels=labels)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


def test_every_ordinary_token_is_replaced_by_one_of_its_shadows(subject: Subject) -> None:
    ids = ids_of(subject, 0)
    client = client_of(subject, ids)
    data = TokenShadow(pool=4, skip=1).apply(client, derive(0, "shadow"))
    kept = torch.isin(ids, special(subject)) | ~client.batch.mask
    assert torch.equal(data.inputs[kept], ids[kept])
    assert not bool((data.inputs == ids)[~kept].any())
    table = subject.embed(torch.arange(subject.tokenizer.vocab_size)[None])[0].detach().double()  # type: ignore[union-attr]
    for token, shadow in zip(ids[~kept].tolist(), data.inputs[~kept].tolist(), strict=True):
        distances = (table - table[token]).norm(dim=1)
        distances[special(subject)] = float("inf")
        nearer = int((distances < distances[shadow]).sum())
        assert 2 <= nearer <= 5, "itself, one that is skipped, and at most three more of the pool"


def test_the_selected_draw_is_the_one_closest_inside_the_model(subject: Subject) -> None:
    """Sixteen draws from one stream: record by record the least distance among the sixteen single draws."""
    client = client_of(subject, ids_of(subject, 1))
    wanted, stream = _representations(subject, client.data), derive(2, "shadow")

    def distance(data: object) -> Tensor:
        return (_representations(subject, data) - wanted).norm(dim=1)  # type: ignore[arg-type]

    chosen = distance(TokenShadow().apply(client, derive(2, "shadow")))
    single = torch.stack([distance(TokenShadow(draws=1).apply(client, stream)) for _ in range(16)])
    torch.testing.assert_close(chosen, single.min(0).values)
    assert bool((single.max(0).values > chosen).all())


def test_targets_of_a_language_model_are_the_shadows() -> None:
    subject = subject_of("random:gpt2", "causal-lm")
    client = client_of(subject, ids_of(subject, 0))
    data = TokenShadow().apply(client, derive(0, "shadow"))
    carried = data.targets.sum(-1) > 0
    assert torch.equal(carried, client.data.targets.sum(-1) > 0) and bool(carried.any())
    assert torch.equal(data.targets.argmax(-1)[carried], data.inputs[carried])


def test_the_surrogate_is_the_mean_over_the_law(subject: Subject) -> None:
    """With one shadow per token there is nothing to average, so the simulated gradient is the released one."""
    client = client_of(subject, ids_of(subject, 0))
    stage = TokenShadow(pool=1, skip=0)
    released = client.trainer.train(stage.apply(client, derive(0, "shadow")), derive(0, "train"))
    simulated = client.trainer.train(stage.surrogate(client), derive(0, "train"))
    for name in released:
        torch.testing.assert_close(simulated[name], released[name], atol=1e-6, rtol=1e-4)
    several = TokenShadow().surrogate(client).inputs.view(-1, *client.data.inputs.shape)
    assert len(several) > 1 and not torch.equal(several[0], several[1])


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_of_the_token_table_name_the_record_through_its_shadows(subject: Subject, seed: int) -> None:
    """The adaptive attack: the released rows are the shadows, and each candidate is asked how many of its own tokens
    have a shadow among them. The truth explains all of its tokens; by chance it leads with probability 1/20 a seed.
    """
    ids = ids_of(subject, seed, CANDIDATES, 12)
    truth = client_of(subject, ids[1:2])
    trainer, stage = truth.trainer, TokenShadow()
    update = trainer.train(stage.apply(truth, derive(seed, "shadow")), derive(seed, "train"))
    rows = update[subject.anatomy.token_embedding].abs().sum(1).nonzero().flatten()
    assert not bool(torch.isin(ids[1, 1:-1], rows).all()), "the record's own tokens are not what is seen"
    own = torch.isin(shadows(subject, ids, pool=stage.pool, skip=stage.skip), rows).any(-1)
    explained = own[:, 1:-1].sum(1)
    others = torch.cat([explained[:1], explained[2:]])
    kept = client_of(subject, ids[1:2]).batch.mask[0, 1:-1]
    assert int(explained[1]) >= int(kept.sum()) and int(explained[1]) > int(others.max())


def test_what_it_cannot_shadow_is_refused() -> None:
    image = load_subject(
        "random:vit",
        settings={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
    )
    pixels = torch.rand(1, *image.pixel_shape, generator=derive(0, "pixels"))
    batch = Batch(inputs=pixels, mask=torch.ones(1, dtype=torch.bool), labels=torch.tensor([0]))
    trainer = ClientTrainer(subject=image, training=LocalTraining())
    with pytest.raises(ModelError, match="replaces token ids"):
        TokenShadow().apply(Client(batch=batch, data=trainer.prepare(batch), trainer=trainer), derive(0, "x"))
    text = subject_of()
    with pytest.raises(ModelError, match="Lower pool"):
        TokenShadow(pool=10**6).apply(client_of(text, ids_of(text, 0)), derive(0, "x"))


@pytest.mark.parametrize("arguments", [{"pool": 0}, {"skip": -1}, {"draws": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="out of range"):
        TokenShadow(**arguments)
