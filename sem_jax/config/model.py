"""The model: its sizes, and what each kind of layer may choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sem_jax.config.fields import LONGEST, MOST_IDS, STEEPEST, setting

Transport = Literal["none", "row_softmax", "causal_sinkhorn", "sequence_sinkhorn"]
Solver = Literal["cg", "dense", "chebyshev", "cg_on_cayley"]
ScanMethod = Literal["auto", "sequential", "associative", "chunked"]
Remat = Literal["none", "elementwise", "layers"]

WIDEST = 16_384  # no width or number of columns, states or neighbours is sensible beyond it
MOST_ITERATIONS = 10_000
MOST_TAPS = 256  # each is a product of its own in the compiled program
MOST_EDGES = 2**22  # of one graph


@dataclass(frozen=True)
class EncoderConfig:
    """Token ids to ψ: transport to a sparse distributed representation (docs/mathematics.md, section 2).

    The plain embedding alone is the default: a transport plan beside it costs 0.016 nats a character at equal
    parameters, the mean of three seeds (docs/results.md, Parts). Without the plan its other fields are not used.
    The position phase costs 0.048 (docs/results.md, Both ends): it makes one token another at every position, and the
    states of the mixers tell distances without it.
    """

    transport: Transport = setting(
        "none",
        "how the transport plan is normalised, if there is one; sequence_sinkhorn, the reference's, is not causal",
    )
    position_phase: bool = setting(False, "turn channel j at position s by s·10000^(−j/D), as the reference does")
    embedding_skip: bool = setting(True, "add the plain embedding beside the transport plan, or in its place")
    sdr_candidates: int = setting(128, "M, columns of the plan", at_least=1, at_most=WIDEST)
    sdr_sparsity: int = setting(
        32,
        "K_s, columns that stay non-zero in each row; 1 would keep none, since the largest entry is the threshold",
        at_least=2,
        at_most=WIDEST,
    )
    cost_dim: int = setting(64, "P, dimension in which the cost is measured", at_least=1, at_most=WIDEST)
    sinkhorn_epsilon: float = setting(0.05, "entropic regularisation", at_least=1e-6, at_most=STEEPEST)
    sinkhorn_max_iter: int = setting(
        50,
        "sweeps at most (sequence_sinkhorn), or exactly (causal_sinkhorn)",
        unit="sweeps",
        at_least=1,
        at_most=MOST_ITERATIONS,
    )
    sinkhorn_tol: float = setting(1e-3, "stop at this max |Δu| (sequence_sinkhorn)", above=0, at_most=1)
    sinkhorn_prior: float = setting(
        128.0,
        "virtual rows, spread evenly, that steady a short prefix (causal_sinkhorn)",
        unit="rows",
        at_least=0,
        at_most=STEEPEST,
    )


@dataclass(frozen=True)
class MixerConfig:
    """One sequence-mixing layer (docs/mathematics.md, section 2, Mixer, and section 7).

    Initialisation, measured as in `EncoderConfig`: fast 1.9576, ring 2.0039, ring with unit variance 1.9981.
    """

    kind: Literal["fixed", "selective"] = setting(
        "selective",
        "what the state takes in and gives out: by fixed matrices B and C, as in the reference, or by keys and queries "
        "that are read from each token",
    )
    input_map: Literal["projection", "spinor_gate"] = setting(
        "projection",
        "what the selective mixer reads its input by: a complex matrix, or a spinor gate, as the fixed one always does",
    )
    selective_init: Literal["mamba3", "mimetic"] = setting(
        "mimetic",
        "where the selective mixer begins: mimetic has queries that are keys, no biases, equal last taps of the "
        "convolution, and every second head still and slow to forget, so that recall can be learned; mamba3 has "
        "queries of their own, biases of 1, and all heads turn",
    )
    rotation: Literal["affine", "bounded"] = setting(
        "bounded",
        "how far a state of the selective mixer turns at a token, in units of its phase: 1 + 2π·tanh(w/2π), with w "
        "affine in the token, or 1 + w",
    )
    output_norm: bool = setting(
        True, "divide what the states of the selective mixer give out by its RMS, before the output gate"
    )
    num_heads: int = setting(8, "H, heads of the selective mixer", at_least=1, at_most=WIDEST)
    block_size: int = setting(8, "b, channels of one spinor block", unit="channels", at_least=1, at_most=WIDEST)
    conv_width: int = setting(4, "K, taps of the causal convolution", unit="tokens", at_least=1, at_most=MOST_TAPS)
    num_groups: int = setting(8, "G, independent groups of channels of the fixed mixer", at_least=1, at_most=WIDEST)
    state_dim: int = setting(16, "N, complex states of one group or head", at_least=1, at_most=WIDEST)
    ssm_init: Literal["fast", "ring"] = setting(
        "fast", "decay at start: fast is the reference's |a| near 0.3, ring is LRU-style"
    )
    ring_max_timescale: float = setting(
        64.0, "slowest time constant of the ring", unit="tokens", above=1, at_most=STEEPEST
    )
    input_scale: Literal["dt", "unit_variance"] = setting(
        "dt", "input of the state: dt is δ·Bx (reference), unit_variance is sqrt(1-|a|²)·Bx"
    )
    clamp_interval: int = setting(
        0,
        "clamp the state's modulus after so many positions; 0: never (256 in the reference)",
        unit="tokens",
        at_least=0,
        at_most=LONGEST,
    )
    scan: ScanMethod = setting(
        "auto", "how the recurrence is evaluated: chunked is matrix products (selective only); auto: what is fastest"
    )


@dataclass(frozen=True)
class PropagatorConfig:
    """One propagator layer: Kerr phase, then a unitary Cayley step; docs/mathematics.md, section 2."""

    solver: Solver = setting("dense", "how the linear system of the Cayley step is solved")
    matvec: Literal["dense", "sparse"] = setting("dense", "the Hamiltonian as one matrix or as an edge list")
    cayley_dt: float = setting(0.1, "time step; h = dt/2; at 0 the channels would not mix", above=0, at_most=1000)
    cg_max_iter: int = setting(
        8, "iterations at most (cg, cg_on_cayley)", unit="iterations", at_least=1, at_most=MOST_ITERATIONS
    )
    solver_tol: float = setting(
        1e-7, "relative residual of one token at which cg and chebyshev stop; cg_tol in the seed", above=0, at_most=1
    )
    chebyshev_degree: int = setting(
        64, "degree at most; the degree that solver_tol needs is used (chebyshev)", at_least=1, at_most=MOST_ITERATIONS
    )
    nonlinear_alpha: float = setting(0.1, "initial Kerr coefficient", at_least=-1000, at_most=1000)
    kerr_saturation: float = setting(
        0.1,
        "σ: the Kerr phase grows with I/(1 + σI), I the intensity; 0: without bound, as in the reference",
        at_least=0,
        at_most=STEEPEST,
    )
    laplacian_sparsity: int = setting(
        8, "neighbours of a node in the finest of the three graphs", at_least=1, at_most=WIDEST
    )
    rewire_probability: float = setting(
        0.1, "share of long-range edges (Watts and Strogatz, 1998)", at_least=0, at_most=1
    )
    num_edges: tuple[int, int, int] = setting(
        (0, 0, 0),
        "edges of each graph, set by an import; 0: as laplacian_sparsity says",
        unit="edges",
        at_least=0,
        at_most=MOST_EDGES,
    )


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the whole model, the order of its layers and its likelihood."""

    vocab_size: int = setting(0, "V; 0: taken from the tokenizer", unit="tokens", at_least=0, at_most=MOST_IDS)
    hidden_dim: int = setting(128, "D, width of the wave", unit="channels", at_least=1, at_most=WIDEST)
    num_layers: int = setting(4, "L, layers of each kind", unit="layers", at_least=1, at_most=1024)
    blocks: str = setting(
        "mixers,propagators",
        "kinds of layers of each depth, in their order, by their names in sem_jax.modules.blocks, with commas",
    )
    layout: Literal["mixers_first", "interleaved"] = setting(
        "mixers_first",
        "order of the layers: mixers_first is all mixers and then all propagators, as in the reference; interleaved is "
        "mixer, propagator, mixer, ...",
    )
    max_seq_length: int = setting(
        2048,
        "longest sequence that training may use; the arithmetic has no limit",
        unit="tokens",
        at_least=1,
        at_most=LONGEST,
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    mixer: MixerConfig = field(default_factory=MixerConfig)
    propagator: PropagatorConfig = field(default_factory=PropagatorConfig)
    likelihood: Literal["coherent", "born", "reference"] = setting(
        "coherent",
        "distribution over the vocabulary: the Born rule on coherent states, the Born rule on D dimensions, or the "
        "reference's unnormalised loss",
    )
    born_floor: float = setting(
        1e-6,
        "share of the uniform distribution mixed into the Born rule; 1 would leave nothing of the model",
        at_least=0,
        below=1,
    )
    remat: Remat = setting(
        "none", "what the backward pass recomputes: nothing, all but real matrix products, or whole layers"
    )
    scan_layers: bool = setting(
        True,
        "one compiled loop over the layers; without it each layer is compiled by itself, so that a small model takes "
        "shorter steps after a longer compilation",
    )
