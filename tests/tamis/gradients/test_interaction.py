import pytest
import torch

from tamis.gradients.interaction import Terms, correct_curvature, diagnose, direction, measure, score_parameters


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
    """Return the terms, u, the sum of gradients of examples, and their scores."""
    terms = Terms(*made(0, 1))
    gradients = made(*range(10, 10 + count))
    G = {name: sum(one[name] for one in gradients) for name in ("a", "b")}
    u = direction(terms)
    return terms, u, G, torch.stack([sum((u[name] * one[name]).sum() for name in u) for one in gradients])


def found_of(terms, u, G, phi_data):
    return diagnose(measure(terms, u, G), phi_data)


def test_the_law_of_rows_and_columns_holds_and_is_recorded():
    terms, u, G, phi_data = rows()
    found = found_of(terms, u, G, phi_data)
    assert found["sum_phi_param"] == pytest.approx(sum(flat(score_parameters(u, G))), rel=1e-12)
    assert found["sum_phi_data"] == pytest.approx(found["inner_u_G"], rel=1e-12)
    assert found["sum_phi_param"] == pytest.approx(found["inner_u_G"], rel=1e-12)
    assert found["law_residual"] < 1e-12


def test_a_broken_law_is_seen():
    terms, u, G, phi_data = rows()
    phi_data[2] += 0.1 * float(phi_data.abs().sum())
    assert found_of(terms, u, G, phi_data)["law_residual"] > 0.05
    assert found_of(terms, u, G, torch.zeros_like(phi_data))["law_residual"] == pytest.approx(1.0)


def test_norms_and_cosine_are_those_of_plain_sums():
    terms, u, G, phi_data = rows()
    found = found_of(terms, u, G, phi_data)
    new, prior = flat(terms.v_new), flat(terms.v_prior)
    length_new, length_prior = (sum(value**2 for value in vector) ** 0.5 for vector in (new, prior))
    inner = sum(one * other for one, other in zip(new, prior, strict=True))
    assert found["norm_v_new"] == pytest.approx(length_new)
    assert found["norm_G"] == pytest.approx(sum(value**2 for value in flat(G)) ** 0.5)
    assert found["norm_u"] == pytest.approx(sum(value**2 for value in flat(u)) ** 0.5)
    assert found["cosine_v_new_v_prior"] == pytest.approx(inner / length_new / length_prior)


def test_a_vector_of_zeros_has_cosine_0():
    terms, u, G, phi_data = rows()
    nothing = Terms(terms.v_new, {name: torch.zeros_like(tensor) for name, tensor in u.items()})
    assert found_of(nothing, u, G, phi_data)["cosine_v_new_v_prior"] == 0.0


def test_exact_zeros_are_counted():
    terms, u, G, phi_data = rows()
    u["a"][0], G["b"][:2], phi_data[0] = 0.0, 0.0, 0.0
    found = found_of(terms, u, G, phi_data)
    assert (found["zeros_u"], found["zeros_phi_param"]) == (4 / 17, 6 / 17)
    assert found["zeros_phi_data"] == 1 / 6


def test_sums_of_groups_of_parameters_add_up():
    v_new, v_prior, G, root = made(0, 1, 2, 3)
    whole = Terms(v_new, v_prior, c=squared(root), eta=0.01)
    u, parts = direction(whole, G), []
    for name in ("a", "b"):
        new, prior, c, one, other = ({name: each[name]} for each in (v_new, v_prior, whole.c, u, G))
        parts.append(measure(Terms(new, prior, c=c, eta=0.01), one, other))
    wanted = measure(whole, u, G)
    assert {key: parts[0][key] + parts[1][key] for key in wanted} == pytest.approx(wanted, rel=1e-12)
    assert wanted["entries"] == 17


def test_the_second_order_share_is_a_ratio_of_norms():
    v_new, v_prior, G, root = made(0, 1, 2, 3)
    terms = Terms(v_new, v_prior, c=squared(root), eta=0.01)
    first = [n + 0.2 * p for n, p in zip(flat(v_new), flat(v_prior), strict=True)]
    second = [0.005 * r**2 * g for r, g in zip(flat(root), flat(G), strict=True)]
    found = found_of(terms, direction(terms, G), G, torch.ones(2))
    wanted = (sum(value**2 for value in second) / sum(value**2 for value in first)) ** 0.5
    assert found["second_over_first"] == pytest.approx(wanted)
    assert found["norm_c"] == pytest.approx(sum(value**4 for value in flat(root)) ** 0.5)
    plain = Terms(v_new, v_prior)
    assert found_of(plain, direction(plain), G, torch.ones(2))["second_over_first"] == 0.0


def test_sums_over_other_parameters_are_refused():
    terms, u, G, _ = rows()
    for one in (terms.v_new, terms.v_prior):
        del one["b"]
    with pytest.raises(ValueError, match=r"1 parameters are in u or its terms only, first \['b'\]"):
        measure(terms, u, G)
