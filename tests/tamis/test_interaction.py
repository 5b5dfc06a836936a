import pytest
import torch

from tamis.interaction import Terms, compare_orders, correct_curvature, diagnose, direction, score_parameters


def made(*seeds):
    """Return random vectors over two parameters."""
    return [make(torch.Generator().manual_seed(seed)) for seed in seeds]


def make(generator):
    shapes = {"a": (3, 4), "b": (5,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def flat(tensors):
    """Return all entries as a list of Python floats."""
    return [float(value) for name in ("a", "b") for value in tensors[name].flatten()]


def squared(tensors):
    return {name: tensor.square() for name, tensor in tensors.items()}


def test_first_order_is_the_weighted_sum():
    v_new, v_prior = made(0, 1)
    u = direction(Terms(v_new, v_prior, lambda_new=2.0, lambda_prior=0.5))
    wanted = [2.0 * one + 0.5 * other for one, other in zip(flat(v_new), flat(v_prior), strict=True)]
    assert flat(u) == pytest.approx(wanted, rel=1e-14)


def test_second_order_takes_half_of_eta_times_curvature_times_the_sum_off():
    v_new, v_prior, G, root = made(0, 1, 2, 3)
    u = direction(Terms(v_new, v_prior, c=squared(root), eta=0.01), G)
    parts = zip(flat(v_new), flat(v_prior), flat(G), flat(root), strict=True)
    assert flat(u) == pytest.approx([n + 0.2 * p - 0.5 * 0.01 * r**2 * g for n, p, g, r in parts], rel=1e-13)


def test_a_small_eta_does_not_underflow():
    v_new = {"a": torch.full((2,), 1e-6, dtype=torch.float16)}
    zero = {"a": torch.zeros(2, dtype=torch.float16)}
    u = direction(Terms(v_new, zero, c={"a": torch.full((2,), 1e-9)}, eta=2e-5), {"a": torch.ones(2)})
    assert u["a"].dtype == torch.float32
    assert bool((u["a"] > 0).all())


def test_second_order_without_sum_or_eta_is_refused():
    v_new, c = made(0, 1)
    with pytest.raises(ValueError, match=r"G is absent, eta 0\.1"):
        direction(Terms(v_new, v_new, c=squared(c), eta=0.1))
    with pytest.raises(ValueError, match="G is given, eta None"):
        direction(Terms(v_new, v_new, c=squared(c)), v_new)


def test_terms_over_other_parameters_are_refused():
    v_new, v_prior = made(0, 1)
    del v_prior["b"]
    with pytest.raises(ValueError, match=r"1 parameters are in one term and not in another, first \['b'\]"):
        direction(Terms(v_new, v_prior))


def test_a_direction_that_is_not_finite_is_refused():
    v_new, v_prior = made(0, 1)
    v_prior["a"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="a: 1 of 12 entries of u are not finite"):
        direction(Terms(v_new, v_prior))


def test_raw_curvature_is_the_second_moment():
    (moment,) = map(squared, made(0))
    assert flat(correct_curvature(moment)) == flat(moment)


def test_corrected_curvature_of_a_constant_gradient_is_its_square():
    moment, beta2 = 0.0, 0.9
    for _ in range(5):
        moment = beta2 * moment + (1 - beta2) * 3.0**2
    c = correct_curvature({"a": torch.tensor([moment], dtype=torch.float64)}, "corrected", beta2=beta2, steps=5)
    assert c["a"].tolist() == pytest.approx([9.0], rel=1e-12)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"form": "exact"}, "unknown curvature 'exact'; known: raw, corrected"),
        ({"steps": 0}, "steps is 0"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
    ],
)
def test_curvature_that_is_not_offered_is_refused(given, why):
    with pytest.raises(ValueError, match=why):
        correct_curvature({"a": torch.ones(1)}, **given)


def test_negative_second_moments_are_refused():
    with pytest.raises(ValueError, match="a: 1 of 2 second moments are not >= 0"):
        correct_curvature({"a": torch.tensor([1.0, -1.0])})


def test_scores_of_parameters_are_products_entry_by_entry():
    u, G = made(0, 1)
    wanted = [one * other for one, other in zip(flat(u), flat(G), strict=True)]
    assert flat(score_parameters(u, G)) == pytest.approx(wanted, rel=1e-14)


def test_scores_of_other_parameters_are_refused():
    u, G = made(0, 1)
    del u["a"]
    with pytest.raises(ValueError, match=r"1 parameters are in u or G only, first \['a'\]"):
        score_parameters(u, G)


def rows(count=6):
    """Return gradients of examples, their sum, u, and the scores of both sides."""
    terms = Terms(*made(0, 1))
    gradients = made(*range(10, 10 + count))
    G = {name: sum(one[name] for one in gradients) for name in ("a", "b")}
    u = direction(terms)
    phi_data = torch.stack([sum((u[name] * one[name]).sum() for name in u) for one in gradients])
    return terms, u, G, phi_data, score_parameters(u, G)


def test_the_law_of_rows_and_columns_holds_and_is_recorded():
    found = diagnose(*rows())
    assert found["sum_phi_data"] == pytest.approx(found["inner_u_G"], rel=1e-12)
    assert found["sum_phi_param"] == pytest.approx(found["inner_u_G"], rel=1e-12)
    assert found["law_residual"] < 1e-12


def test_a_broken_law_is_seen():
    terms, u, G, phi_data, phi_param = rows()
    phi_data[2] += 0.1 * float(phi_data.abs().sum())
    assert diagnose(terms, u, G, phi_data, phi_param)["law_residual"] > 0.05
    assert diagnose(terms, u, G, torch.zeros_like(phi_data), phi_param)["law_residual"] == pytest.approx(1.0)


def test_norms_and_cosine_are_those_of_plain_sums():
    terms, u, G, phi_data, phi_param = rows()
    found = diagnose(terms, u, G, phi_data, phi_param)
    new, prior = flat(terms.v_new), flat(terms.v_prior)
    length_new, length_prior = (sum(value**2 for value in vector) ** 0.5 for vector in (new, prior))
    inner = sum(one * other for one, other in zip(new, prior, strict=True))
    assert found["norm_v_new"] == pytest.approx(length_new)
    assert found["norm_G"] == pytest.approx(sum(value**2 for value in flat(G)) ** 0.5)
    assert found["norm_u"] == pytest.approx(sum(value**2 for value in flat(u)) ** 0.5)
    assert found["cosine_v_new_v_prior"] == pytest.approx(inner / length_new / length_prior)


def test_a_vector_of_zeros_has_cosine_0():
    terms, u, G, phi_data, phi_param = rows()
    nothing = Terms(terms.v_new, {name: torch.zeros_like(tensor) for name, tensor in u.items()})
    assert diagnose(nothing, u, G, phi_data, phi_param)["cosine_v_new_v_prior"] == 0.0


def test_exact_zeros_are_counted():
    terms, u, G, phi_data, phi_param = rows()
    u["a"][0], phi_param["b"][:2], phi_data[0] = 0.0, 0.0, 0.0
    found = diagnose(terms, u, G, phi_data, phi_param)
    assert (found["zeros_u"], found["zeros_phi_param"]) == (4 / 17, 2 / 17)
    assert found["zeros_phi_data"] == 1 / 6


def test_ties_at_the_threshold_are_counted_by_size():
    terms, u, G, phi_data, phi_param = rows()
    phi_param["a"][0] = torch.tensor([0.5, -0.5, 0.5, 0.7])
    phi_data[:2] = 2.0
    found = diagnose(terms, u, G, phi_data, phi_param, threshold_param=0.5, threshold_data=2.0)
    assert (found["ties_param"], found["ties_data"]) == (3 / 17, 2 / 6)


def test_one_entry_at_the_threshold_is_no_tie():
    terms, u, G, phi_data, phi_param = rows()
    phi_param["a"][0, 0] = -0.5
    found = diagnose(terms, u, G, phi_data, phi_param, threshold_param=0.5)
    assert found["ties_param"] == 0.0
    assert "ties_data" not in found


def test_the_second_order_share_is_a_ratio_of_norms():
    v_new, v_prior, G, root = made(0, 1, 2, 3)
    terms = Terms(v_new, v_prior, c=squared(root), eta=0.01)
    first = [n + 0.2 * p for n, p in zip(flat(v_new), flat(v_prior), strict=True)]
    second = [0.005 * r**2 * g for r, g in zip(flat(root), flat(G), strict=True)]
    wanted = (sum(value**2 for value in second) / sum(value**2 for value in first)) ** 0.5
    assert compare_orders(terms, G) == pytest.approx(wanted)
    assert compare_orders(Terms(v_new, v_prior), G) == 0.0
    assert "norm_c" in diagnose(terms, direction(terms, G), G, torch.ones(2), score_parameters(v_new, G))
