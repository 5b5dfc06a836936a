"""Near-duplicates: rows of almost the same words, proposed by MinHash and confirmed by their exact Jaccard similarity.

Symbols: `S_i` the shingles of row i, its runs of three words; `J_ij = |S_i and S_j| / |S_i or S_j|`, in [0, 1]. A
*sketch* of a row is the minima of `S_i` under k hashes, each of which is that of `S_j` with probability `J_ij`. It is
cut into b bands of r minima; rows that share a whole band are candidates. Of rows with equal shingles, *repeats*, the
first stands for all.

Words are what is between blanks, cut where letters and digits meet other signs: 5 + 5 and 5 - 5 differ. Where a script
has no blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), every character is a word.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from tamis.examples.conversations import Conversation, fold

SHINGLE = 3  # words of a shingle
SHORT = 8  # a text of fewer words has single words as shingles
MINIMA = 128  # of a sketch, 4 bytes each while a batch is read
PROPOSED = 0.99  # of the pairs at the threshold, at least so many share a band, on average
LEAST = 0.1  # the lowest threshold: below, every pair would be a candidate
BATCH = 4096  # rows whose sketches are in memory at once
LEADS = 64  # rows of a bucket, its first, that every other row of it is compared with
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
UNSPACED += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+(?:[{MARKS}]+[^\\W{UNSPACED}]*)*|[^\\w\\s{UNSPACED}{MARKS}]+")


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Which rows are near-duplicates of which."""

    near_duplicate_of: Int64[np.ndarray, " row"]  # place of the first row of its cluster; -1 at that row itself
    cluster_sizes: Int64[np.ndarray, " row"]  # rows of its cluster, itself counted; 1 for a row like no other
    pairs: Int64[np.ndarray, "pair 2"]  # (earlier, later), sorted; a repeat stands in one: with its first row
    jaccards: Float64[np.ndarray, " pair"]  # of the pairs, at least the threshold; 1 for repeats alone


def join_dialogue(conversation: Conversation) -> str:
    """Return what a conversation is compared by: all that its messages say, but for system messages and tools.

    These stand before many rows unchanged, and would make them alike.

    >>> from tamis.examples.conversations import make_exchange
    >>> join_dialogue(make_exchange("Hi", "Hello", "Be kind."))
    'Hi\\nHello'
    """
    spoken = (one for one in conversation.messages if one.role != "system")
    return "\n".join(part for one in spoken for part in (one.content, one.details) if part)


def split_words(text: str) -> list[str]:
    """Return the words of a text, folded: letters and digits, other signs, and single characters without blanks.

    >>> split_words("Tar -xf  a_b.tar, don't!"), split_words("我喜欢 Python3")
    (['tar', '-', 'xf', 'a_b', '.', 'tar', ',', 'don', "'", 't', '!'], ['我', '喜', '欢', 'python3'])
    """
    return WORD.findall(fold(text))


def shingle(text: str) -> UInt64[np.ndarray, " shingle"]:
    """Return the hashes of a text's shingles, each once, ascending.

    Shingles are its runs of `SHINGLE` words; its words where these are fewer than `SHORT`. A text without a word has
    none. That two shingles of a corpus share a hash of 64 bits is as good as impossible.

    **Source**: Broder, "On the resemblance and containment of documents", 1997, section 2.

    >>> len(shingle("to be or not to be")), len(shingle("to be or not to be or not to be"))
    (4, 4)
    """
    words = split_words(text)
    hashes = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    return _hash_runs(hashes, SHINGLE if len(words) >= SHORT else 1)


def plan_bands(jaccard: float) -> tuple[int, int]:
    """Return how many bands a sketch is cut into, and the minima of each: as many as leave few pairs unproposed.

    Rows with similarity J share a band with probability `1 - (1 - J^r)^b`; r is the largest for which this is at least
    `PROPOSED` at the threshold.

    **Source**: Indyk and Motwani, "Approximate nearest neighbors", 1998; Leskovec et al., "Mining of massive datasets",
    section 3.4.

    Args:
        jaccard: the threshold.

    >>> plan_bands(0.8), plan_bands(1.0)
    ((21, 6), (1, 128))
    """
    sizes = range(MINIMA, 0, -1)
    width = next(r for r in sizes if 1 - (1 - jaccard**r) ** (MINIMA // r) >= PROPOSED)
    return MINIMA // width, width


def find_near_duplicates(texts: Iterable[str], *, jaccard: float, seed: int = 0) -> NearDuplicates:
    """Return which rows are near-duplicates: pairs whose Jaccard similarity is at least a threshold, and clusters.

    In row order, a row joins the cluster of the earliest first row that it is itself similar enough to, else it is the
    first row of another. So each row is similar enough to the one that it is said to be a near-duplicate of; two first
    rows are not, but for pairs that were not proposed. Repeats join where the first of them does.

    A pair at the threshold is proposed with probability `PROPOSED` at least, others above it more often; none below it
    is returned. Where more than `LEADS` rows, repeats aside, share a band, each is compared with the first of them
    alone. Which rows stand together in a batch plays no part.

    **Source**: Broder 1997 as `shingle`; hashes by multiplication and shift, Dietzfelbinger et al., "A reliable
    randomized algorithm for the closest-pair problem", 1997.

    Args:
        texts: of the rows; read twice, so a generator will not do.
        jaccard: the threshold, in [`LEAST`, 1].
        seed: of the hashes: which pairs are proposed.

    Raises:
        ValueError: the threshold is out of range, the texts can be read once only, or are others the second time.

    Cost: time linear in the words, and in candidates; memory 8 (b + 2) bytes per row (184 at 0.8), as much again while
    they are gathered, and 8 per shingle of rows that share a band with another.

    >>> two = "to be or not to be, that is the question", "To be, or not to be: that is the question"
    >>> find_near_duplicates([*two, "all the world is a stage"], jaccard=0.2).near_duplicate_of.tolist()
    [-1, 0, -1]
    """
    if not LEAST <= jaccard <= 1:
        raise ValueError(f"jaccard is {jaccard}; give a threshold from {LEAST} to 1")
    if isinstance(texts, Iterator):
        raise ValueError("the texts are read twice and this iterator gives them once; give a list of them")
    digests, keys = _sketch_rows(texts, jaccard, seed)
    _, firsts, which = np.unique(digests, return_index=True, return_inverse=True)
    first = firsts[which]
    first[digests == 0] = np.flatnonzero(digests == 0)  # no word: like none
    rows = np.flatnonzero((first == np.arange(len(first))) & (digests != 0))
    found = rows[_propose(keys[rows], len(rows))]
    flat, offsets = _read_again(texts, digests, np.unique(found))
    _hash_word.cache_clear()  # another corpus has other words
    similar = _compare(flat, offsets, found)
    return _gather(found[similar >= jaccard], similar[similar >= jaccard], first)


def match_marked(found: NearDuplicates, marked: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """Return which rows have a near-duplicate among marked rows, themselves not counted, as held-out rows in the pool.

    >>> found = find_near_duplicates(["a b", "c d", "A  b"], jaccard=0.8)
    >>> match_marked(found, np.array([True, True, False])).tolist()
    [False, False, True]
    """
    first = np.arange(len(marked))
    repeats = found.jaccards == 1
    first[found.pairs[repeats, 1]] = found.pairs[repeats, 0]
    counts = np.bincount(first, weights=marked, minlength=len(marked))
    near = np.zeros(len(marked), bool)
    for ones, others in (found.pairs[~repeats].T, found.pairs[~repeats].T[::-1]):
        near[ones[counts[others] > 0]] = True
    return near[first] | (counts[first] - marked > 0)


@lru_cache(maxsize=1 << 18)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _digest(shingles: np.ndarray) -> int:
    """Return what rows with equal shingles share; 0 where there are none."""
    if not len(shingles):
        return 0
    return int.from_bytes(hashlib.blake2b(shingles.tobytes(), digest_size=8).digest(), "little") | 1


def _cut(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in batches."""
    left = iter(texts)
    while batch := list(islice(left, BATCH)):
        yield batch


def _sketch_rows(texts: Iterable[str], jaccard: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what stands for each row's shingles, and the hash of each of its bands: arrays [row] and [row, band]."""
    bands, width = plan_bands(jaccard)
    generator = np.random.default_rng(seed)
    factors, shifts = generator.integers(0, 2**64, (2, bands * width), dtype=np.uint64)
    factors |= np.uint64(1)
    digests, keys = [np.empty(0, np.uint64)], [np.empty((0, bands), np.uint64)]
    for batch in _cut(texts):
        sets = [shingle(text) for text in batch]
        digests.append(np.array([_digest(one) for one in sets], np.uint64))
        flat, offsets = _lay(sets)
        minima = np.full((len(sets), bands * width), 2**32 - 1, np.uint32)
        _sketch(flat, offsets, factors, shifts, minima)
        keys.append(_hash_bands(minima.reshape(len(sets), bands, width)))
    return np.concatenate(digests), np.concatenate(keys)


def _lay(sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return sets one after the other, and where each begins and the last ends."""
    offsets = np.cumsum([0, *map(len, sets)])
    return np.concatenate([np.empty(0, np.uint64), *sets]), offsets


def _propose(keys: np.ndarray, rows: int) -> np.ndarray:
    """Return the pairs (earlier, later) of rows that share a band, each once, sorted by the later and the earlier."""
    names = np.empty(0, np.int64)
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        edges = np.flatnonzero(np.diff(band[order])) + 1
        more = _pair_up(order, np.concatenate([[0], edges, [rows]]), LEADS)
        names = np.sort(np.concatenate([names, more]))
        names = names[np.diff(names, prepend=-1) > 0]
    later, earlier = np.divmod(names, max(1, rows))
    return np.column_stack([earlier, later])


def _read_again(texts: Iterable[str], digests: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shingles of the wanted rows, flat, and where those of each row of all begin."""
    asked, read, sets = np.zeros(len(digests), bool), 0, []
    asked[wanted] = True
    lengths = np.zeros(len(digests) + 1, np.int64)
    for read, text in enumerate(texts, start=1):
        if read <= len(asked) and asked[read - 1]:
            sets.append(shingle(text))
            lengths[read] = len(sets[-1])
            if _digest(sets[-1]) != digests[read - 1]:
                raise ValueError(f"the text of row {read - 1} was another when it was read again; give a list of them")
    if read != len(digests):
        raise ValueError(f"there were {len(digests)} texts, and {read} when they were read again; give a list of them")
    return _lay(sets)[0], np.cumsum(lengths)


def _gather(pairs: np.ndarray, similar: np.ndarray, first: np.ndarray) -> NearDuplicates:
    """Return pairs and clusters of all rows.

    Args:
        pairs: of first rows, sorted by the later one.
        similar: their similarities.
        first: of each row, the first with the same shingles.
    """
    lead = np.full(len(first), -1)
    _follow(pairs, lead)
    repeats = np.flatnonzero(first != np.arange(len(first)))
    lead[repeats] = np.where(lead[first[repeats]] < 0, first[repeats], lead[first[repeats]])
    cluster = np.where(lead < 0, np.arange(len(lead)), lead)
    sizes = np.bincount(cluster, minlength=len(lead))[cluster]
    pairs = np.concatenate([pairs, np.column_stack([first[repeats], repeats])])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return NearDuplicates(lead, sizes, pairs[order], np.concatenate([similar, np.ones(len(repeats))])[order])


@numba.njit(cache=True, nogil=True)
@no_type_check
def _mix(value):
    """Spread a hash over all of its 64 bits, one to one: the last step of splitmix64, Steele et al. 2014."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
@no_type_check
def _hash_runs(hashes, size):
    """Return the hashes of all runs of so many words, each once, ascending."""
    runs = np.zeros(max(0, len(hashes) - size + 1), np.uint64)
    for start in range(len(runs)):
        for place in range(start, start + size):
            runs[start] = _mix(runs[start] + hashes[place])
    runs.sort()
    kept = 0
    for place in range(len(runs)):
        if kept == 0 or runs[place] != runs[kept - 1]:
            runs[kept] = runs[place]
            kept += 1
    return runs[:kept]


@numba.njit(cache=True, nogil=True)
@no_type_check
def _hash_bands(minima):
    """Return one hash of the minima of each band: an array [row, band]."""
    keys = np.zeros(minima.shape[:2], np.uint64)
    for row in range(minima.shape[0]):
        for band in range(minima.shape[1]):
            for place in range(minima.shape[2]):
                keys[row, band] = _mix(keys[row, band] + np.uint64(minima[row, band, place]))
    return keys


@numba.njit(cache=True, nogil=True)
@no_type_check
def _sketch(flat, offsets, factors, shifts, minima):
    """Lower each row's minima to those of the hashes (factor * shingle + shift) div 2^32 of its shingles."""
    for row in range(len(offsets) - 1):
        for place in range(offsets[row], offsets[row + 1]):
            for k in range(len(factors)):
                value = np.uint32((flat[place] * factors[k] + shifts[k]) >> np.uint64(32))
                minima[row, k] = min(minima[row, k], value)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _pair_up(order, edges, leads):
    """Return pairs of each bucket's rows with its first ones, as later * rows + earlier; a bucket is in row order."""
    total = 0
    for bucket in range(len(edges) - 1):
        for member in range(1, edges[bucket + 1] - edges[bucket]):
            total += min(member, leads)
    names, found = np.empty(total, np.int64), 0
    for bucket in range(len(edges) - 1):
        for member in range(1, edges[bucket + 1] - edges[bucket]):
            for lead in range(min(member, leads)):
                names[found] = order[edges[bucket] + member] * len(order) + order[edges[bucket] + lead]
                found += 1
    return names


@numba.njit(cache=True, nogil=True)
@no_type_check
def _compare(flat, offsets, pairs):
    """Return the Jaccard similarity of each pair of rows, whose shingles are ascending."""
    similar = np.empty(len(pairs))
    for pair in range(len(pairs)):
        one, other = offsets[pairs[pair, 0]], offsets[pairs[pair, 1]]
        end, other_end = offsets[pairs[pair, 0] + 1], offsets[pairs[pair, 1] + 1]
        union, shared = (end - one) + (other_end - other), 0
        while one < end and other < other_end:
            before, after = flat[one] <= flat[other], flat[one] >= flat[other]
            shared += before and after
            one += before
            other += after
        similar[pair] = shared / (union - shared)
    return similar


@numba.njit(cache=True, nogil=True)
@no_type_check
def _follow(pairs, lead):
    """Let each row follow the earliest row that it is paired with and that follows none; pairs come by the later."""
    for earlier, later in pairs:
        if lead[later] < 0 and lead[earlier] < 0:
            lead[later] = earlier
