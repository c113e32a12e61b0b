"""Product quantisation: codes stand for the nearest vectors, and codebooks fit the table."""

import itertools

import pytest
import torch

from espnet_ext.methods.codes import (
    CODES,
    decode,
    encode,
    fit_codebooks,
    grid_codebooks,
    token_frequencies,
)


def table(rows=600, width=12):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3))


def test_codes_are_the_nearest_vectors_of_each_part():
    weight = table(40)
    books = table(3 * CODES, 4).view(3, CODES, 4)
    codes = encode(weight, books)
    assert codes.shape == (40, 3) and codes.dtype == torch.uint8
    decoded = decode(codes, books)
    for row, part in itertools.product(range(40), range(3)):
        vector = weight[row, 4 * part : 4 * part + 4]
        distances = (books[part] - vector).norm(dim=1)
        chosen = books[part][codes[row, part].long()]
        assert torch.isclose((chosen - vector).norm(), distances.min(), atol=1e-5)
        assert torch.equal(decoded[row, 4 * part : 4 * part + 4], chosen)


@pytest.mark.parametrize("size", [2, 4, 6])
def test_codebooks_are_better_than_rows_taken_at_random(size):
    weight = table(2000)
    books = fit_codebooks(weight, size, torch.ones(2000))
    assert books.shape == (12 // size, CODES, size)
    assert torch.equal(books, books.half().float())
    assert torch.equal(books, fit_codebooks(weight, size, torch.ones(2000)))
    taken = weight[:CODES].unflatten(1, (-1, size)).transpose(0, 1).contiguous()
    errors = [(decode(encode(weight, b), b) - weight).square().mean() for b in (books, taken)]
    assert errors[0] < 0.85 * errors[1]


def test_frequent_rows_are_nearer_to_their_codes():
    weight, frequencies = table(3000), token_frequencies(torch.arange(3000))

    def error(weights):
        books = fit_codebooks(weight, 6, weights)
        return (decode(encode(weight, books), books) - weight).square().mean(1)

    by_use, alike = error(frequencies), error(torch.ones(3000))
    assert (by_use * frequencies).sum() < 0.9 * (alike * frequencies).sum()
    assert by_use[:100].mean() < 0.8 * alike[:100].mean()


def test_books_do_not_change_where_all_frequencies_are_twice_as_high():
    weight, frequencies = table(400), token_frequencies(torch.arange(400))
    books = fit_codebooks(weight, 4, frequencies)
    torch.testing.assert_close(books, fit_codebooks(weight, 4, 2 * frequencies))


def test_a_table_of_few_rows_is_kept():
    weight = table(50)
    books = fit_codebooks(weight, 4, token_frequencies(torch.arange(50)))
    torch.testing.assert_close(decode(encode(weight, books), books), weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size, levels", [(1, 256), (2, 16), (3, 6), (4, 4)])
def test_a_grid_rounds_each_number_alone_in_equal_steps(size, levels):
    weight = table(900) * 0.1 + torch.arange(12.0)
    frequencies = token_frequencies(torch.arange(900))
    step = 8.0 / levels
    books = grid_codebooks(weight, size, step, frequencies)
    assert books.shape == (12 // size, CODES, size)
    wide = weight.double()
    mean = (wide * frequencies.double().unsqueeze(1)).sum(0) / frequencies.double().sum()
    width = step * (wide - mean).square().mean().sqrt()
    places = ((wide - mean) / width).round().clamp(-(levels // 2), (levels - 1) // 2)
    found = decode(encode(weight, books), books).double()
    # Float16 holds means of up to 11 to 0.004, which can move a number into the next step.
    assert ((found - (mean + places * width)).abs() < 0.01).double().mean() > 0.9
    assert ((found - weight).abs() < width / 2 + 0.01)[places.abs() < levels // 2 - 1].all()


def test_a_part_without_rows_has_empty_codes():
    assert not grid_codebooks(table(0), 4, 1.0, torch.ones(0)).any()
    books = fit_codebooks(table(0), 4, torch.ones(0))
    assert books.shape == (3, CODES, 4) and not books.any()
    assert encode(table(0), books).shape == (0, 3)
    assert decode(encode(table(0), books), books).shape == (0, 12)


def test_codebooks_get_the_gradients_of_the_rows_that_they_stand_for():
    books = fit_codebooks(table(), 4, torch.ones(600)).requires_grad_()
    codes = encode(table(), books)
    given = table(600, 12).cos()
    (decode(codes, books) * given).sum().backward()
    for part in range(3):
        wanted = torch.zeros(CODES, 4)
        wanted.index_add_(0, codes[:, part].long(), given[:, 4 * part : 4 * part + 4])
        torch.testing.assert_close(books.grad[part], wanted)
