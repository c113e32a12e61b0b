"""A pretrained encoder teaches a small one."""

import pytest
import torch

from espnet_ext.encoders.pretrained.load import load_stack
from espnet_ext.errors import UserError
from espnet_ext.models.teacher import Teacher
from tests.fixtures import foundation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(foundation.seeded(tmp_path_factory, 4))


def batch():
    generator = torch.Generator().manual_seed(2)
    speech = 0.1 * torch.randn(2, 9600, generator=generator)
    return torch.randn(2, 15, 12, generator=generator), torch.tensor([15, 10]), speech


def test_the_loss_is_that_of_mean_frames_of_each_utterance_alone(folder):
    """Two frames of the teacher, 20 ms, for one of the encoder, 40 ms."""
    teacher = Teacher(folder, 12)
    encoded, frames, speech = batch()
    samples = torch.tensor([9600, 6400])
    found = teacher.loss(encoded.requires_grad_(), frames, speech, samples)
    stack = load_stack(folder).eval()
    errors, cosines = [], []
    for one, length, wave, count in zip(encoded, frames, speech, samples, strict=True):
        with torch.no_grad():
            target, _ = stack(wave[None, :count], count[None])
        means = target[0].unflatten(0, (-1, 2)).mean(1)
        assert len(means) == length
        mapped = one[:length] @ teacher.head.weight.T + teacher.head.bias
        errors += (mapped - means).abs().mean(1).tolist()
        lengths = mapped.norm(dim=1) * means.norm(dim=1)
        cosines += ((mapped * means).sum(1) / lengths).tolist()
    wanted = sum(errors) / 25 + 1 - sum(cosines) / 25
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    found.backward()
    assert encoded.grad[1, 10:].abs().max() == 0 and encoded.grad[1, :10].abs().min() > 0


def test_the_teacher_is_no_part_of_the_model(folder):
    teacher = Teacher(folder, 12)
    assert set(teacher.state_dict()) == {"head.weight", "head.bias"}
    teacher.train()
    encoded, frames, speech = batch()
    losses = [teacher.loss(encoded, frames, speech, torch.tensor([9600, 6400])) for _ in range(2)]
    assert torch.equal(*losses)  # the teacher stays in evaluation mode


def test_an_encoder_of_another_rate_is_refused(folder):
    encoded, _, speech = batch()
    with pytest.raises(UserError, match="its frame rate must be a multiple of the encoder's"):
        Teacher(folder, 12).loss(encoded, torch.tensor([12, 8]), speech, torch.tensor([9600, 6400]))
