"""Draws the scenes of the digits set: real scans of handwritten digits on textured backgrounds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np

SPLITS = ('train', 'val')
FORMAT = 1  # raise it when the same settings give other pictures
SCAN = 32  # side of an enlarged scan; its ink keeps a margin so that turning it cuts nothing off
MARGIN = 4
MIN_PIXELS = 12  # an instance with fewer visible pixels is dropped


@dataclass(frozen=True)
class DigitsSpec:
    """Settings of a digits set; equal settings give equal files.

    Args:
        image_size: Width and height of the (square) images in pixels.
        train: Number of training images.
        val: Number of validation images.
        objects: Fewest and most digits in an image. Where no free place is found, one is left out.
        scale: Smallest and largest height of a digit, as a fraction of ``image_size``.
        overlap: Most of the smaller of two boxes that may be covered by the other.
        clutter: Most pen strokes, which are no digits, in an image.
        val_scans: Fraction of the scans of each class that only val may use.
        seed: Seed of everything that is drawn.
    """

    image_size: int = 128
    train: int = 800
    val: int = 200
    objects: tuple[int, int] = (3, 7)
    scale: tuple[float, float] = (0.2, 0.42)
    overlap: float = 0.1
    clutter: int = 1
    val_scans: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ('objects', 'scale'):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rules = (
            ('image_size', self.image_size >= 32, 'at least 32'),
            ('train', self.train >= 1, 'at least 1'),
            ('val', self.val >= 1, 'at least 1'),
            (
                'objects',
                _is_range(self.objects, 0, math.inf),
                '(fewest, most) with 0 <= fewest <= most',
            ),
            ('scale', _is_range(self.scale, 0.05, 0.9), '(smallest, largest) within 0.05 and 0.9'),
            ('overlap', 0 <= self.overlap < 1, 'from 0 to below 1'),
            ('clutter', self.clutter >= 0, '0 or more'),
            ('val_scans', 0.05 <= self.val_scans <= 0.95, 'from 0.05 to 0.95'),
            ('seed', self.seed >= 0, '0 or more'),
        )
        for name, good, expected in rules:
            if not good:
                raise ValueError(
                    f'The digits setting {name!r} is {getattr(self, name)!r}; expected {expected}.'
                )

    @classmethod
    def from_dict(cls, settings: dict | None) -> DigitsSpec:
        """Builds a spec from a config's dict and refuses keys that nothing would read."""
        settings = dict(settings or {})
        valid = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(valid))
        if unknown:
            raise ValueError(f'Unknown digits setting(s) {unknown}; valid are {valid}.')
        return cls(**settings)

    def to_dict(self) -> dict:
        """The settings as JSON would give them back, together with the format's number."""
        return json.loads(json.dumps(dict(asdict(self), format=FORMAT)))


def _is_range(pair: tuple, low: float, high: float) -> bool:
    return len(pair) == 2 and low <= pair[0] <= pair[1] <= high


# ---------------------------------------------------------------------------------------- scans


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Loads scikit-learn's digits: ink in 0..1, and labels.

    Returns:
        Scans of shape (1797, 8, 8), float32, and labels of shape (1797,).

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed, with the command that installs it.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModuleNotFoundError(
            'The digits come with scikit-learn, which is not installed; run: '
            'pip install scikit-learn'
        ) from error
    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(int)


def split_scans(labels: np.ndarray, spec: DigitsSpec) -> dict[str, np.ndarray]:
    """Divides the scans, class by class, into those of train and those of val; none is in both."""
    rng = np.random.default_rng([spec.seed, 7])
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        cut = round(len(members) * spec.val_scans)
        parts['val'].append(members[:cut])
        parts['train'].append(members[cut:])
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


def enlarge(scans: np.ndarray) -> np.ndarray:
    """(N, 8, 8) scans to (N, SCAN, SCAN): smooth strokes with an empty margin."""
    side = SCAN - 2 * MARGIN
    big = np.zeros((len(scans), SCAN, SCAN), np.float32)
    for out, scan in zip(big, scans):
        ink = cv2.resize(scan, (side, side), interpolation=cv2.INTER_CUBIC)
        out[MARGIN:-MARGIN, MARGIN:-MARGIN] = ink.clip(0, 1)
    return big


# ------------------------------------------------------------------------------------- drawing


def _background(rng: np.random.Generator, spec: DigitsSpec) -> np.ndarray:
    """A coloured texture: value noise in several octaves, and pen strokes."""
    size = spec.image_size
    image = np.empty((size, size, 3), np.float32)
    image[:] = rng.uniform(40, 130) + rng.uniform(-20, 20, 3)
    rough = rng.uniform(0.45, 0.8)  # how fast the octaves fade
    strength = rng.uniform(12, 32)
    for octave, cells in enumerate((2, 4, 8, 16, 32)):
        grid = rng.standard_normal((cells + 1, cells + 1, 3)).astype(np.float32)
        grid = 0.6 * grid[..., :1] + 0.4 * grid
        layer = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        image += layer * np.float32(strength * rough**octave)
    for _ in range(rng.integers(0, spec.clutter + 1)):
        points = rng.uniform(0, size, (1, 2)) + np.cumsum(rng.normal(0, size / 10, (4, 2)), axis=0)
        color = (image.mean((0, 1)) + rng.uniform(-60, 90)).clip(0, 255).tolist()
        width = int(rng.integers(1, max(2, size // 40) + 1))
        cv2.polylines(image, [np.round(points * 8).astype(np.int32)], False, color, width,
                      cv2.LINE_AA, 3)  # fmt: skip
    return image


def _shape_digit(ink: np.ndarray, rng: np.random.Generator, spec: DigitsSpec) -> np.ndarray:
    """Scales, stretches, turns and slants an enlarged scan; returns its opacity, cut to the ink."""
    low, high = (edge * spec.image_size for edge in spec.scale)
    height = math.exp(rng.uniform(math.log(low), math.log(high)))  # as many small ones as large
    scale = height / (SCAN - 2 * MARGIN)
    stretch, angle, slant = rng.uniform(0.85, 1.2), rng.normal(0, 0.08), rng.normal(0, 0.06)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, slant], [0, 1]]) * scale
    side = math.ceil(SCAN * scale * 1.3)
    shift = np.array([side / 2, side / 2]) - matrix @ np.array([SCAN / 2 - 0.5, SCAN / 2 - 0.5])
    if scale < 1:
        ink = cv2.GaussianBlur(ink, (0, 0), 0.35 / scale)  # against aliasing of thin strokes
    warped = cv2.warpAffine(ink, np.column_stack([matrix, shift]), (side, side),
                            flags=cv2.INTER_LINEAR)  # fmt: skip
    opacity = ((warped - 0.2) / 0.4).clip(0, 1)
    rows, columns = np.flatnonzero(opacity.max(1) > 0.5), np.flatnonzero(opacity.max(0) > 0.5)
    if not len(rows):  # nothing left of a faint scan
        return opacity[:0, :0]
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    height: int, width: int, taken: np.ndarray, rng: np.random.Generator, spec: DigitsSpec
) -> tuple[int, int] | None:
    """Finds a corner where a box of this size covers little of those placed, or None."""
    room = np.array([spec.image_size - width, spec.image_size - height])
    corners = rng.integers(0, np.maximum(room, 0) + 1, (30, 2))
    if (room < 0).any():
        return None
    if len(taken):
        near = np.maximum(corners[:, None], taken[None, :, :2])
        far = np.minimum(corners[:, None] + [width, height], taken[None, :, 2:])
        shared = (far - near).clip(0).prod(2)
        areas = np.minimum((taken[:, 2:] - taken[:, :2]).prod(1), width * height)
        corners = corners[(shared <= spec.overlap * areas).all(1)]
    return None if not len(corners) else (int(corners[0, 0]), int(corners[0, 1]))


def draw_image(
    ink: np.ndarray,
    labels: np.ndarray,
    pool: np.ndarray,
    rng: np.random.Generator,
    spec: DigitsSpec,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Draws one image.

    Args:
        ink: Enlarged scans, (N, SCAN, SCAN).
        labels: Their digits, (N,).
        pool: Indices of the scans that may be used.
        rng: Source of every random choice.
        spec: Settings of the set.

    Returns:
        The image (H, W, 3) uint8; an instance map (H, W) with 0 for background and k + 1 for the
        k-th digit; and a (digit, scan index) pair for each digit, in that order.
    """
    image = _background(rng, spec)
    instances = np.zeros(image.shape[:2], np.uint8 if spec.objects[1] < 255 else np.int32)
    taken: np.ndarray = np.empty((0, 4), int)
    digits: list[tuple[int, int]] = []
    for _ in range(rng.integers(spec.objects[0], spec.objects[1] + 1)):
        scan = int(rng.choice(pool))
        opacity = _shape_digit(ink[scan], rng, spec)
        if opacity.size == 0:
            continue
        height, width = opacity.shape
        corner = _place(height, width, taken, rng, spec)
        if corner is None:
            continue
        x, y = corner
        area = np.s_[y : y + height, x : x + width]
        ground = image[area].mean((0, 1))
        contrast = rng.uniform(70, 130)
        color = (ground + contrast + rng.normal(0, 15, 3)).clip(0, 255).astype(np.float32)
        image[area] += (color - image[area]) * opacity[..., None]
        instances[area][opacity > 0.5] = len(digits) + 1
        taken = np.vstack([taken, [x, y, x + width, y + height]])
        digits.append((int(labels[scan]), scan))
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image += grain * np.float32(rng.uniform(4, 16))
    return image.clip(0, 255).astype(np.uint8), instances, digits


def annotate(instances: np.ndarray, digits: list[tuple[int, int]]) -> tuple[list[dict], np.ndarray]:
    """Turns an instance map into COCO annotations (ids are the writer's) and a semantic map."""
    from pycocotools import mask as coco_mask

    annotations, semantic = [], np.zeros(instances.shape, np.uint8)
    for number, (digit, scan) in enumerate(digits, start=1):
        mask = instances == number
        area = int(mask.sum())
        if area < MIN_PIXELS:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation = dict(size=list(map(int, rle['size'])), counts=rle['counts'].decode('ascii'))
        annotations.append(dict(category_id=digit + 1, bbox=box, area=area, iscrowd=0,
                                segmentation=segmentation, scan=scan))  # fmt: skip
        semantic[mask] = digit + 1
    return annotations, semantic
