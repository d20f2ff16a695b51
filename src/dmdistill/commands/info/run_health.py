"""The health of a run, in words, from the metrics that change in a good run: DMD's losses hardly do.

A check looks at one kind of metric. What it finds wrong ends in what to change.
"""

from __future__ import annotations

import math
from statistics import fmean, median

from dmdistill.commands.info.log_series import Rows, bin_means, columns, group, later, series

__all__ = ["verdict"]

LAG = 1.5
"""Largest healthy lag. Healthy runs had at most 1.21 (CIFAR-10 at its first measurement, then 0.81 to 0.95;
Fashion-MNIST 0.34 to 0.94); one whose generator learned twenty times as fast as its fake score 1.5 to 77, with a median
of 8."""
CERTAIN = 0.65
"""Largest healthy accuracy of a discriminator, at once on real and on generated images. On three of the eight levels
images are all but noise: where they differ as white does from grey it was 0.70 to 0.85, in healthy runs at most 0.49.
StyleGAN2-ADA (Karras et al. 2020) holds it at 0.8 on real images without noise, and takes more for overfitting."""
DRIFT = 0.5
"""Largest healthy distance of the brightness from the teacher's, in standard deviations of the teacher's pixels. One
step from pure noise begins at the mean of the data. Healthy runs on these data stayed within 0.15; one that oscillated
left by 0.2 to 5, with a median of 2.4."""
SATURATED = 1.5
"""Largest healthy saturation, as a multiple of the teacher's. Students of CIFAR-10 end at 0.77 and 0.84."""
GAIN = 0.1
"""Smallest healthy fall of a Frechet distance over STARTED measurements, as a share of the first. Healthy runs on
Fashion-MNIST fell by 45 to 75 %."""
RISE = 1.25
"""Largest healthy regression loss at the end of a run, as a multiple of that at its beginning. Where matching begins it
rises; of a small teacher of blobs, with matching in the second half, to 1.09."""
STARTED = 5
"""Measurements after which a run should have gained something."""
COLLAPSED = 0.1
"""Smallest healthy standard deviation of the samples, as a multiple of its largest or of the teacher's. One step from
pure noise begins, as a blurred image, at 0.4 (CIFAR-10) or 0.7 (Fashion-MNIST) of the teacher's."""
NOISY = 2.0
"""Largest healthy standard deviation of the samples, as a multiple of the teacher's. Healthy runs ended at 0.92 to
1.05."""


def verdict(rows: Rows, clip: float | None, *, start: str | None = None, warmup: int = 0, ended: bool = False) -> str:
    """Say whether a run is healthy by its log; where it is not, what is wrong and what to change.

    Args:
        rows: of the log.
        clip: the run's --grad-clip.
        start: the student that the run started from, which may be good already.
        warmup: steps in which the learning rate rises; within them no run is called healthy.
        ended: no more rows will come, so that what was measured once is judged too.
    """
    if noise := find_noise(rows, least=1 if ended else 2):  # of which all other figures follow
        return f"unhealthy: {noise}"
    checks = [
        check_finite(rows),
        check_gradients(rows, clip),
        check_distances(rows, must_fall=start is None),
        check_regression(rows, must_fall=start is None),
        check_lag(rows, least=1 if ended else 2),
        check_gap(rows),
        check_discriminator(rows),
        check_brightness(rows),
        check_saturation(rows),
        check_sample_std(rows, least=1 if ended else 2),
    ]
    findings = [check for check in checks if check is not None]
    if problems := [text for healthy, text in findings if not healthy]:
        return f"unhealthy: {'; '.join(problems)}"
    texts = ", ".join(text for _, text in findings)
    measured = any(check is not None for check in checks[2:])  # finite values and gradients are not enough
    if measured and rows[-1]["step"] < warmup:
        early = "too short to judge" if ended else "too early to tell"
        return f"{early}: the learning rate rises until step {warmup}; {texts}"
    if measured:
        return f"healthy: {texts}" if ended else f"healthy so far: {texts}"
    if ended:
        return f"too short to judge: {texts}; a smaller --evaluate-every or --log-every measures more"
    return f"too early to tell: {texts}"


Check = tuple[bool, str] | None
"""Whether a check finds the run healthy, and the finding; None where nothing was measured."""


def check_finite(rows: Rows) -> Check:
    """Look for NaN and infinity."""
    keys = sorted({key for row in rows for key, value in row.items() if not math.isfinite(value)})
    if keys:
        return False, f"{', '.join(keys)}: NaN or infinite: lower --lr, lengthen --warmup, or try --precision fp32"
    return True, "all values are finite"


def check_gradients(rows: Rows, clip: float | None) -> Check:
    """Look for gradients that are clipped in more than half of the rows."""
    norms = group(rows, "gradient_")
    if clip is None or len(rows) < 5 or not norms:
        return None
    for key, values in norms.items():
        clipped = sum(norm >= clip for _, norm in values)
        if 2 * clipped > len(values):
            flag = "--lr" if key == "gradient_generator" else "--lr, or --lr-fake where the fake score keeps up"
            share = f"{clipped} of {len(values)} rows"
            return False, f"{key} is above --grad-clip {clip:g} in {share}: lower {flag}"
    return True, "gradients are below --grad-clip"


def check_distances(rows: Rows, *, must_fall: bool) -> Check:
    """Look for a Frechet distance of twice its best value, measured later, and for one that has hardly fallen."""
    distances = group(rows, "frechet_")
    if not any(len(values) > 1 for values in distances.values()):
        return None
    for key, values in distances.items():
        step, best = min(values, key=lambda one: one[1])
        if values[-1][1] > 2 * best:
            rise = f"rose from {best:.3g} at step {step} to {values[-1][1]:.3g}"
            return False, f"{key} {rise}, the run diverges: lower --lr, or end it there"
        if must_fall and len(values) >= STARTED and best > (1 - GAIN) * values[0][1]:
            stays = f"{key} was {values[0][1]:.3g} at step {values[0][0]} and at best {best:.3g} since"
            change = "raise --lr where the images hardly change, lower it where they get worse"
            return False, f"{stays}, the run gains nothing: {change}"
    return True, "the Frechet distance does not diverge"


def check_regression(rows: Rows, *, must_fall: bool) -> Check:
    """Look for a regression loss that is RISE times higher in the last third of at least six rows than in the first."""
    losses = [value for _, value in series(rows, "loss_reg")]
    if not must_fall or len(losses) < 6:
        return None
    third = len(losses) // 3
    first, last = fmean(losses[:third]), fmean(losses[-third:])
    if last > RISE * first:
        return False, f"loss_reg rose from {first:.3g} to {last:.3g}: lower --lr, or raise --lambda-reg"
    return True, f"loss_reg went from {first:.3g} to {last:.3g}"


def check_lag(rows: Rows, *, least: int) -> Check:
    """Look for a fake score that lags behind the generator in most later measurements since it began to learn."""
    learning = [row for row in rows if bin_means([row], "gap_") not in ([], [0.0])]
    lags = [value for _, value in series(learning, "fake_lag")]
    if len(lags) < least:
        return None
    if (lag := median(later(lags))) > LAG:
        loss = f"its loss is {lag:.3g} times the teacher's"
        return False, f"the fake score lags, {loss}: raise --fake-steps or --lr-fake, or lower --lr"
    return True, f"the fake score keeps up (lag {lag:.2f})"


def check_gap(rows: Rows) -> Check:
    """Look for a gap between the fake and the real score that grows up to the last of at least four measurements.

    A fake score that has not begun to learn equals the real one, so that a first rise from zero is healthy.
    """
    means = [mean for mean in bin_means(rows, "gap_") if mean > 0]
    if len(means) < 4:
        return None
    last = later(means)
    if last == sorted(last) and means[-1] == max(means) and means[-1] > 2 * last[0]:
        growth = f"the gap grew from {last[0]:.3g} to {means[-1]:.3g}"
        return False, f"{growth}, the fake score no longer follows: raise --fake-steps or --lr-fake, or lower --lr"
    return True, "the fake score follows the generator"


def check_discriminator(rows: Rows) -> Check:
    """Look for a discriminator that is right of nearly all images, real and generated, in the last two measurements."""
    both = [min(pair) for pair in columns(rows, "accuracy_real", "accuracy_generated")]
    if len(both) < 2:
        return None
    if min(both[-2:]) > CERTAIN:
        certain = f"the discriminator is right of {both[-1]:.0%} of all images"
        return False, f"{certain} and teaches little: lower --discriminator-weight, or add --r1"
    return True, "the discriminator can be deceived"


def check_brightness(rows: Rows) -> Check:
    """Look for samples whose mean, or that of a channel of latents, left the teacher's in most later measurements."""
    checked = False
    for key in group(rows, "sample_mean"):
        channel = key.removeprefix("sample_mean")
        values = columns(rows, key, f"teacher_mean{channel}", f"teacher_std{channel}")
        distances = [abs(own - teacher) / max(std, 0.01) for own, teacher, std in values]
        if len(distances) < 2:
            continue
        checked = True
        if (distance := median(later(distances))) > DRIFT:
            name = f"mean of channel {channel[1:]}" if channel else "brightness"
            drift = f"the {name} drifts, it is {distance:.2g} standard deviations from the teacher's"
            return False, f"{drift}: raise --fake-steps, or lower --lr"
    return (True, f"brightness within {DRIFT:g} std of the teacher's") if checked else None


def check_saturation(rows: Rows) -> Check:
    """Look for samples of brighter colours than the teacher's."""
    compared = columns(rows, "sample_saturation", "teacher_saturation")
    if not compared:
        return None
    own, teacher = compared[-1]
    if own > SATURATED * teacher:
        excess = f"the saturation of the samples is {own:.2f}, the teacher's {teacher:.2f}"
        return False, f"{excess}: lower --guidance or --lr, or end the run earlier"
    return True, "colours are not over-saturated"


def find_noise(rows: Rows, *, least: int) -> str | None:
    """Say that the samples are mostly noise, where their spread is more than twice the teacher's; None if not."""
    values, compared = [value for _, value in series(rows, "sample_std")], columns(rows, "sample_std", "teacher_std")
    if len(values) < least or not compared:
        return None
    last, teacher = values[-1], max(compared[-1][1], 0.01)
    if not (last > NOISY * teacher and 2 * last > values[0]):
        return None
    excess = f"sample_std is {last:.3g}, the teacher's {teacher:.3g}, the samples are mostly noise"
    if last > 1.5 * min(values):
        return f"{excess}, which came in training: lower --lr"
    return f"{excess}, as at the start: start the student at a lower --student-timesteps, or raise --lr"


def check_sample_std(rows: Rows, *, least: int) -> Check:
    """Look for samples whose spread fell to a tenth, or is less than a tenth of the teacher's."""
    values = [value for _, value in series(rows, "sample_std")]
    if len(values) < least:
        return None
    last, compared = values[-1], columns(rows, "sample_std", "teacher_std")
    teacher = max(compared[-1][1], 0.01) if compared else None
    largest = max(values) if teacher is None else min(max(values), NOISY * teacher)  # no fall from noise
    if last < COLLAPSED * largest:
        fall = f"sample_std fell from {largest:.3g} to {last:.3g}"
        return False, f"{fall}, the samples collapse: lower --lr, or raise --fake-steps or --lambda-reg"
    if teacher is None:
        return True, f"sample_std {last:.3g} is {last / max(largest, 1e-6):.2f} of its largest (at least {COLLAPSED:g})"
    if len(compared) > 3 and last < COLLAPSED * teacher:
        little = f"sample_std stays at {last:.3g}, the teacher's is {teacher:.3g}"
        return False, f"{little}, the samples are all alike: raise --lr or --lambda-reg"
    ratio = f"sample_std {last:.3g} is {last / teacher:.2f} of the teacher's"
    return True, f"{ratio} ({COLLAPSED:g} to {NOISY:g} is healthy)"
