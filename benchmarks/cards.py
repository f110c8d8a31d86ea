"""How fast a graphics card computes and moves bytes, and the time that counted work takes at these rates."""

from dataclasses import dataclass

from work_counter import Kind, Operation, Work

LAUNCH_SECONDS = 2.5e-6  # of the shortest kernel


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card: what large kernels reach of it, not its peak. A prediction with these rates is not a timing."""

    name: str
    tera_per_second: dict[Kind, float]  # 10^12 operations
    bytes_per_second: float

    def predict_seconds(self, work: Work) -> float:
        """Predict the time of work whose operations run one after the other, each limited by what is slowest."""
        return sum(self._predict_operation(each) for each in work.operations)

    def _predict_operation(self, operation: Operation) -> float:
        computing = operation.flops / (1e12 * self.tera_per_second[operation.kind]) if operation.flops else 0
        moving = operation.num_bytes / self.bytes_per_second
        return max(computing, moving, LAUNCH_SECONDS)


def make_card(
    name: str, gemm: float, attention: float, eight: tuple[float, float, float], conv: tuple[float, float], tb: float
):
    """Make a card of its rates.

    `eight` are GEMM in INT8, GEMM in float8 and attention in 8 bits; `conv` is with channels first and last.
    """
    rates = (gemm, *eight[:2], attention, eight[2], *conv)
    return Card(name, dict(zip(Kind, rates, strict=False)), tb * 1e12)


# bf16, attention by cuDNN or FlashAttention 3 on the H200. The H200's convolution is calibrated on a published time of
# the VAE (645 ms a block), the others are scaled from it. Float8 is assumed at twice the rate of bf16
# on a GeForce, as are their peaks with sums in float32 (330 and 419; 389 is published for an RTX 5090,
# pytorch/pytorch#155991), and on the H200 at that of INT8.
CARDS = (
    make_card("H200", 680, 620, (1100, 1100, 900), (70, 250), 4.3),
    make_card("RTX 4090", 150, 150, (420, 300, 400), (50, 100), 0.95),
    make_card("RTX 5090", 190, 190, (540, 380, 540), (65, 130), 1.6),
)
H200, RTX_4090, RTX_5090 = CARDS
