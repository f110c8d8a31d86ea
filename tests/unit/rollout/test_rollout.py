"""A rollout equals the same method written plainly: dense attention over lists of frames, nothing cached."""

import math
from dataclasses import dataclass, field, replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from longlive.config import Positions, RolloutConfig
from longlive.errors import PositionError
from longlive.model.causal import CausalWan
from longlive.model.wan import Geometry, WanModel
from longlive.rollout.noise import seed_noise
from longlive.rollout.rollout import Pass, PassKind, Rollout, check_positions
from longlive.rollout.sampler import Sampler
from longlive.session.boundary import Boundary
from longlive.session.prompt import Prompt

MODEL = tiny.model()
GRID = (1, 2)  # of tokens in a frame of 16 x 32 pixels
SHAPE = (1, 16, 2, 4)


@dataclass(eq=False)
class Frame:
    """A frame as one pass of the network knew it; later passes attend what that pass made of it."""

    latents_CHW: Tensor
    timestep: float
    prompt: Tensor
    made_by: "PlainPass"


@dataclass(eq=False)
class PlainPass:
    """A pass over some frames, and the frames of earlier passes it attends, in the order of time."""

    past: list[Frame]
    at: list[int]  # temporal positions of `past`, then of its own frames
    frames: list[Frame] = field(default_factory=list)


class PlainRollout:
    """LongLive Alg. 2 with lists of frames as its KV cache; every pass computes the whole history again."""

    def __init__(self, model: CausalWan, config: RolloutConfig, seed: int) -> None:
        self.tree, self.geometry, self.config, self.seed = model.tree, model.geometry, config, seed
        self.passes: list[PlainPass] = []
        self.reset()

    def reset(self) -> None:
        self.sink: list[Frame] = []
        self.recent: list[Frame] = []
        self.sink_at: list[int] = []  # absolute positions
        self.recent_at: list[int] = []
        self.clean: list[Tensor] = []  # finished frames since the last cut
        self.end = 0

    def denoise(self, noises: list[Tensor], prompt: Tensor) -> list[Tensor]:
        levels = [step / 1000 for step in self.config.steps]
        sigmas = [self.config.shift * s / (1 + (self.config.shift - 1) * s) for s in levels]
        frames, clean = [*noises[0][0]], []
        for step, sigma in enumerate(sigmas):
            flows = self.flow(self.place_block(frames, 1000 * sigma, prompt))
            clean = [x - sigma * v for x, v in zip(frames, flows, strict=True)]
            if step + 1 < len(sigmas):
                to = sigmas[step + 1]
                frames = [(1 - to) * x + to * e for x, e in zip(clean, noises[step + 1][0], strict=True)]
        return clean

    def place_block(self, frames: list[Tensor], timestep: float, prompt: Tensor) -> PlainPass:
        sink, at = self.sink, self.sink_at
        room = self.config.recent - max(0, len(frames) - max(0, self.config.sink - len(sink)))
        keep = slice(max(0, len(self.recent) - room), None)
        return self.place([*sink, *self.recent[keep]], [*at, *self.recent_at[keep]], frames, self.end, timestep, prompt)

    def place(self, past, past_at, frames, start: int, timestep: float, prompt: Tensor) -> PlainPass:
        at = [*past_at, *range(start, start + len(frames))]
        if self.config.positions is Positions.UNBOUNDED:
            at = [*range(len(at))]  # within the window, sink first
        made = PlainPass(list(past), at)
        made.frames = [Frame(latents, timestep, prompt, made) for latents in frames]
        return made

    def clean_pass(self, clean: list[Tensor], prompt: Tensor) -> None:
        made = self.place_block(clean, self.config.context_noise, prompt)
        self.passes.append(made)
        for frame in made.frames:
            if len(self.sink) < self.config.sink:
                self.sink.append(frame)
                self.sink_at.append(self.end)
            else:
                self.recent.append(frame)
                self.recent_at.append(self.end)
            self.end += 1
        self.clean += clean
        self.recent, self.recent_at = self.recent[-self.config.recent :], self.recent_at[-self.config.recent :]

    def recache(self, prompt: Tensor, *, renew: bool) -> None:
        everything = renew or self.end <= self.config.window
        count = min(self.end, self.config.window) if everything else self.config.recent
        start = self.end - count
        past, past_at = ([], []) if everything else (self.sink, self.sink_at)
        made = self.place(past, past_at, self.clean[start:], start, self.config.context_noise, prompt)
        self.passes.append(made)
        at = [*range(start, self.end)]
        if everything:
            self.sink, self.sink_at = made.frames[: self.config.sink], at[: self.config.sink]
            self.recent, self.recent_at = made.frames[self.config.sink :], at[self.config.sink :]
        else:
            self.recent, self.recent_at = [*made.frames], at

    def flow(self, upcoming: PlainPass) -> list[Tensor]:
        """Compute the flow of a pass's frames from all passes before, layer by layer, by attention over lists."""
        tree, g = self.tree, self.geometry
        passes = [*self.passes, upcoming]
        frames = [frame for each in passes for frame in each.frames]
        hidden = {f: tree.patch_embedding(f.latents_CHW[None, :, None]).flatten(2)[0].T for f in frames}
        times = {f: tree.time_embedding(self.sinusoid(f.timestep))[0] for f in frames}
        shifts = {f: tree.time_projection(times[f]).view(6, -1) for f in frames}
        texts = {
            id(f.prompt): tree.text_embedding(F.pad(f.prompt, (0, 0, 0, g.text_len - len(f.prompt)))) for f in frames
        }

        for block in tree.blocks:
            e = {f: (block.modulation[0] + shifts[f]) for f in frames}
            y = {f: normalise(hidden[f], g.eps) * (1 + e[f][1]) + e[f][0] for f in frames}
            a = block.self_attn
            q = {f: self.split_heads(normalise_rms(a.q(y[f]), a.norm_q.weight, g.eps)) for f in frames}
            k = {f: self.split_heads(normalise_rms(a.k(y[f]), a.norm_k.weight, g.eps)) for f in frames}
            v = {f: self.split_heads(a.v(y[f])) for f in frames}
            for each in passes:
                seen = [*each.past, *each.frames]
                keys = torch.cat([self.rotate(k[f], at) for f, at in zip(seen, each.at, strict=True)])
                values = torch.cat([v[f] for f in seen])
                own = each.at[len(each.past) :]
                for f, at in zip(each.frames, own, strict=True):
                    hidden[f] = hidden[f] + e[f][2] * a.o(attend(self.rotate(q[f], at), keys, values))
            a = block.cross_attn
            for f in frames:
                text = texts[id(f.prompt)]
                query = normalise_rms(
                    a.q(normalise(hidden[f], g.eps) * block.norm3.weight + block.norm3.bias), a.norm_q.weight, g.eps
                )
                keys = self.split_heads(normalise_rms(a.k(text), a.norm_k.weight, g.eps))
                hidden[f] = hidden[f] + a.o(attend(self.split_heads(query), keys, self.split_heads(a.v(text))))
                hidden[f] = hidden[f] + e[f][5] * block.ffn(normalise(hidden[f], g.eps) * (1 + e[f][4]) + e[f][3])

        return [self.unpatched(hidden[f], times[f]) for f in upcoming.frames]

    def unpatched(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.tree.head.modulation[0] + time
        patches = self.tree.head.head(normalise(x, self.geometry.eps) * (1 + scale) + shift)
        out = torch.empty(self.geometry.out_dim, 2 * GRID[0], 2 * GRID[1], dtype=x.dtype)
        for token, patch in enumerate(patches):
            row, column = divmod(token, GRID[1])
            out[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch.view(2, 2, -1).permute(2, 0, 1)
        return out

    def sinusoid(self, timestep: float) -> Tensor:
        half = self.geometry.freq_dim // 2
        angles = [timestep * 10000.0 ** (-i / half) for i in range(half)]
        return torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]], dtype=torch.float64)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.geometry.num_heads, -1)

    def rotate(self, x_TNH: Tensor, frame: int) -> Tensor:
        channels = x_TNH.shape[-1]
        spatial = 2 * (channels // 6)
        sizes = (channels - 2 * spatial, spatial, spatial)
        places = [(frame, *divmod(token, GRID[1])) for token in range(len(x_TNH))]
        angles = [
            [p * 10000.0 ** (-2 * i / n) for p, n in zip(place, sizes, strict=True) for i in range(n // 2)]
            for place in places
        ]
        turn = torch.polar(torch.ones(1, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))[:, None]
        return torch.view_as_real(torch.view_as_complex(x_TNH.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


def normalise(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()


def normalise_rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def attend(q_TNH: Tensor, k_SNH: Tensor, v_SNH: Tensor) -> Tensor:
    scores = torch.einsum("tnh,snh->nts", q_TNH, k_SNH) / q_TNH.shape[-1] ** 0.5
    return torch.einsum("nts,snh->tnh", scores.softmax(-1), v_SNH).flatten(1)


def make_exact_model(geometry: Geometry = tiny.GEOMETRY) -> CausalWan:
    """Make the tiny network in float64, so that no difference is rounding."""
    return CausalWan.of_tree(WanModel(geometry, dtype=torch.float64).requires_grad_(False))


@pytest.fixture(scope="module")
def model() -> CausalWan:
    wide = make_exact_model()
    wide.tree.load_state_dict({name: weight.double() for name, weight in MODEL.tree.state_dict().items()})
    return wide


STORY = (
    (3, None),
    (2, Boundary.RECACHE),  # within the window
    (3, Boundary.KEEP),
    (3, Boundary.RECACHE),  # beyond it
    (2, Boundary.RENEW),
    (3, Boundary.KEEP),
    (2, Boundary.CUT),
    (2, Boundary.RECACHE),
)


def sample_story(model: CausalWan, config: RolloutConfig, story=STORY) -> Tensor:
    """Make the story with the sampler."""
    video = replace(tiny.session(config), dtype=torch.float64)
    with Sampler(model) as sampler:
        for number, (blocks, boundary) in enumerate(story):
            video = video.switched_to(prompt(number), boundary) if boundary else video.switched_to(prompt(number))
            video = sampler.sample(video, blocks)
    return video.latents()


def prompt(number: int) -> Prompt:
    return tiny.prompt(number)


def sample_plainly(model: CausalWan, config: RolloutConfig, story=STORY) -> Tensor:
    """Make the same story with lists of frames."""
    plain, made = PlainRollout(model, config, 7), []
    noise = seed_noise(7, (1, config.block, *SHAPE[1:]), torch.float64)
    block = 0
    for number, (blocks, boundary) in enumerate(story):
        embedding = prompt(number).pad()[0].double()
        match boundary:
            case Boundary.CUT:
                plain.reset()
                plain.passes.clear()
            case Boundary.RECACHE | Boundary.RENEW:
                plain.recache(embedding, renew=boundary is Boundary.RENEW)
        for _ in range(blocks):
            clean = plain.denoise([noise(block, step) for step in range(len(config.steps))], embedding)
            plain.clean_pass(clean, embedding)
            made += clean
            block += 1
    return torch.stack(made)[None]


@pytest.mark.parametrize(
    "config",
    [
        RolloutConfig(window=6, sink=3, block=1, steps=(1000, 500)),  # a sink larger than a block
        RolloutConfig(window=8, sink=5, block=2, steps=(1000, 500)),  # and filled in the midst of one
        RolloutConfig(steps=(1000,)),
        RolloutConfig(window=9, sink=0, steps=(1000,)),
        RolloutConfig(
            window=6, sink=2, block=2, steps=(1000, 300), shift=3.0, context_noise=40.0
        ),  # switches as it fills
        RolloutConfig(window=6, sink=3, block=1, steps=(1000, 500), positions=Positions.UNBOUNDED),
        RolloutConfig(window=7, sink=4, block=2, steps=(1000,), positions=Positions.UNBOUNDED),
    ],
    ids=str,
)
@torch.no_grad()
def test_law_2_a_streamed_video_equals_attention_over_lists_of_frames(model, config):
    """Every boundary, before and after the window is full: ring, sink, slots and rotation change nothing."""
    torch.testing.assert_close(sample_story(model, config), sample_plainly(model, config), rtol=0, atol=2e-5)


def roll_out(rollout: Rollout, text, blocks: int, start: int = 0) -> list[Tensor]:
    batch = rollout.cache.layers[0].k_BSNH.shape[0]
    noise = seed_noise(5, (1, rollout.config.block, *SHAPE[1:]), torch.float32)
    made = []
    for block in range(start, start + blocks):
        frame = block * rollout.config.block
        clean = rollout.denoise(frame, text, lambda b, s: noise(b, s).expand(batch, -1, -1, -1, -1), block)
        rollout.clean_pass(frame, clean, text)
        made.append(clean)
    return made


@pytest.mark.parametrize("positions", list(Positions))
@pytest.mark.parametrize(("window", "sink", "block"), [(12, 3, 3), (6, 3, 1), (11, 4, 2)])
def test_a_recache_without_its_dead_queries_equals_one_with_all(positions, window, sink, block):
    config = RolloutConfig(window=window, sink=sink, block=block, positions=positions)
    first, second = (MODEL.read_prompt(tiny.prompt(n).pad()) for n in (0, 1))
    after, passes = [], []
    for exhaustive in (False, True):
        done: list[Pass] = []
        rollout = Rollout(MODEL, config, SHAPE, watch=done.append, exhaustive=exhaustive)
        past = torch.cat(roll_out(rollout, first, 8), 1)
        rollout.recache(past.shape[1], past, second)
        after.append(torch.cat(roll_out(rollout, second, 3, start=8), 1))
        passes += [found for found in done if found.kind is PassKind.RECACHE]
    lean, whole = passes
    assert (lean.place.frames, whole.place.frames) == (config.recent, config.window)
    assert lean.flow is None
    assert whole.flow is not None
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-6)


def test_context_noise_is_a_timestep_and_nothing_is_added_to_the_latents():
    done: list[Pass] = []
    rollout = Rollout(MODEL, RolloutConfig(context_noise=40.0), SHAPE, watch=done.append, exhaustive=True)
    roll_out(rollout, MODEL.read_prompt(tiny.prompt(0).pad()), 1)
    rollout.recache(3, torch.zeros(1, 3, *SHAPE[1:]), MODEL.read_prompt(tiny.prompt(1).pad()))
    assert [(found.kind, *found.timesteps) for found in done if found.kind is not PassKind.DENOISE] == [
        (PassKind.CLEAN, 40.0),
        (PassKind.RECACHE, 40.0),
    ]


@pytest.mark.parametrize(("block", "last"), [(1, 1024), (2, 1024), (3, 1023), (7, 1022)])
def test_absolute_positions_end_at_1024_frames_and_the_error_names_the_cure(block, last):
    config = RolloutConfig(block=block)
    check_positions(config, last)
    cure = r"end at frame 1024 \(4093 pixel frames\); .*unbounded.*, or restart them with a cut"
    with pytest.raises(PositionError, match=f"would reach frame {last + block} since .*{cure}"):
        check_positions(config, last + block)
    check_positions(replace(config, positions=Positions.UNBOUNDED), last + block)


def test_short_prompts_are_padded_with_zero_rows_that_are_attended():
    embedding = torch.randn(1, 4, tiny.TEXT_DIM)
    padded = F.pad(embedding, (0, 0, 0, tiny.GEOMETRY.text_len - 4))
    for short, full in zip(MODEL.read_prompt(embedding).layers, MODEL.read_prompt(padded).layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(short, full, strict=True))
        assert short[0].shape[1] == tiny.GEOMETRY.text_len


@pytest.mark.parametrize("positions", list(Positions))
def test_a_batch_of_two_equals_two_single_runs(positions):
    """The reference's unbounded positions are wrong for more than one."""
    config = RolloutConfig(window=6, sink=2, block=2, positions=positions)
    embeddings = [tiny.prompt(n).pad() for n in (0, 1)]
    both = Rollout(MODEL, config, (2, *SHAPE[1:]))
    together = torch.cat(roll_out(both, MODEL.read_prompt(torch.cat(embeddings)), 8), 1)
    for row, embedding in enumerate(embeddings):
        alone = torch.cat(roll_out(Rollout(MODEL, config, SHAPE), MODEL.read_prompt(embedding), 8), 1)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
