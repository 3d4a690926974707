"""Fetches the photographs, prepares them, and draws training batches from them.

photos.csv names every photograph: the Debian package it comes in, its licence,
its author, its sha256, and whether it is for training or for validation. A
photograph is in one of the two as a whole, never in both. It also names the
fonts of the drawn pages.

Photographs are scaled down by whole factors with area averaging: that removes
the camera's own noise and JPEG's traces, so that the targets are clean. All
scaled pictures lie in one flat file of bytes that is mapped into memory.
"""

import csv
import hashlib
import io
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parents[1] / "build" / "training" / "data"
FORMAT = 4  # raise it when prepared files must be made anew

FACTORS = (2, 3, 4, 6, 8)
FACTORS_SMALL = (1.5, 2)  # for sources that somebody scaled down already
SMALL = 1000  # pixels on the longer side
LONGEST = 1800  # pixels; larger results still carry too much of the source's noise
SHORTEST = 144  # pixels; the largest training patch must fit
VALIDATION_PIXELS = 160_000  # about the size of the usual benchmark pictures

NEWER = "trixie"  # the Debian release that has what the machine's own lacks
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

DRAWN_SIDE, DRAWN_SEED = 512, 7
LEAVES_PICTURES, LEAVES = 32, 12_000
PAGES = 16
LETTERS = "eeeetttaaooiinnsshhrrddllcumwfgypbvkjxqz"

SIGMA_MAX = 55.0
SHARE_CLEAN = 0.05  # patches with no noise at all: clean in must be clean out
SHARE_REAL = 0.15  # patches with camera-like noise, half of them through JPEG
SHARE_GREY = 0.12  # patches without colour, whose noise is the same in all channels

Image.MAX_IMAGE_PIXELS = None


def photos():
    with open(HERE / "photos.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def download(package, folder, options=()):
    return subprocess.run(["apt-get", *options, "download", "-qq", package], cwd=folder).returncode == 0


def newer_release():
    """Options that show apt-get the release NEWER, at this machine's mirror, beside its own lists."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Label: Debian"]
    site = subprocess.run(targets, capture_output=True, text=True, check=True).stdout.split()
    if not site:
        sys.exit("data.py: apt-get knows no Debian mirror; run 'apt-get update' once, then try again")
    own = DATA / "apt"
    (own / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (own / "sources.list").write_text(f"deb [signed-by={KEYRING}] {site[0]} {NEWER} main\n")
    options = ("-o", f"Dir::Etc::SourceList={own}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null",
               "-o", f"Dir::State::Lists={own}/lists", "-o", f"Dir::Cache={own}/cache")
    print(f"data.py: looking in Debian {NEWER}", flush=True)
    subprocess.run(["apt-get", *options, "-qq", "update"])
    return options


def fetch(package):
    """Unpacks a Debian package without installing it; needs no root."""
    target = DATA / "packages" / package
    if target.exists():
        return target
    if not shutil.which("apt-get"):
        sys.exit("data.py: the photographs are Debian packages; run this where apt-get exists")
    work = DATA / "packages" / f"{package}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if not (download(package, work) or download(package, work, newer_release())):
        sys.exit(f"data.py: cannot download {package}; run 'apt-get update' once, then try again")
    deb = next(work.glob("*.deb"))
    subprocess.run(["dpkg", "-x", deb, work], check=True)
    deb.unlink()
    work.rename(target)
    return target


def listed(row):
    """The path of a file of photos.csv, once it is known to be the one listed."""
    path = fetch(row["package"]) / row["file"]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != row["sha256"]:
        sys.exit(f"data.py: {path} is not the file that photos.csv describes; the package changed: "
                 "check its licence and put the new sha256 into photos.csv")
    return path


def open_photo(row):
    return Image.open(listed(row)).convert("RGB")


def scaled_for_training(img):
    for f in FACTORS_SMALL if max(img.size) <= SMALL else FACTORS:
        size = int(img.width / f), int(img.height / f)
        if max(size) <= LONGEST and min(size) >= SHORTEST:
            yield img.resize(size, Image.Resampling.BOX)


def scaled_for_validation(img):
    f = max(2, round((img.width * img.height / VALIDATION_PIXELS) ** 0.5))
    return img.reduce(f)


def dead_leaves(photo, seed):
    """Random shapes that hide one another, in a photograph's colours.

    They have what landscapes lack: hard edges in every direction at every size,
    as in buildings, print and screenshots. Drawn large and scaled down, so that
    the edges are those of a lens and not of a staircase.
    """
    rng = np.random.default_rng((DRAWN_SEED, seed))
    side = DRAWN_SIDE * 2
    img = Image.new("RGB", (side, side))
    draw, colours = ImageDraw.Draw(img), np.asarray(photo).reshape(-1, 3)
    for _ in range(LEAVES):
        r = side / 2 * rng.uniform(0.008**2, 1) ** -0.5 * 0.008
        turn, corners = rng.uniform(0, 2 * np.pi), int(rng.choice([3, 4, 4, 40]))
        angles = turn + np.sort(rng.uniform(0, 2 * np.pi, corners) if corners < 40 else np.linspace(0, 2 * np.pi, 40))
        at = rng.uniform(0, side, 2)
        points = at + r * np.stack([np.cos(angles), rng.uniform(0.3, 1) * np.sin(angles)], 1)
        draw.polygon([tuple(p) for p in points], tuple(int(c) for c in colours[rng.integers(len(colours))]))
    return img.reduce(2)


def page(photo, fonts, seed):
    """Lines of made-up words in many sizes on paper, a little turned: print and signs.

    Paper and ink have the photograph's colours, and some of it shows through.
    """
    rng = np.random.default_rng((DRAWN_SEED, 1, seed))
    side = DRAWN_SIDE * 3  # turned, the middle two thirds are full
    img = photo.resize((side, side), Image.Resampling.BICUBIC)
    colours = np.asarray(photo).reshape(-1, 3)
    by_light = colours[rng.integers(len(colours), size=64)]
    by_light = by_light[by_light.sum(1).argsort()]
    light, dark = by_light[-1] // 2 + 127, by_light[0] // 2
    paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
    img = Image.blend(img, Image.new("RGB", img.size, tuple(int(c) for c in paper)), rng.choice([0.6, 0.9, 1]))
    draw, y = ImageDraw.Draw(img), 0
    while y < side:
        size = int(14 * 10 ** rng.uniform(0, 1) ** 2)
        font = ImageFont.truetype(fonts[rng.integers(len(fonts))], size)
        colour = ink if rng.random() < 0.7 else colours[rng.integers(len(colours))]
        for _ in range(rng.integers(1, 5)):
            words = ("".join(rng.choice(list(LETTERS), rng.integers(1, 11))) for _ in range(side // size))
            line = " ".join(w.title() if rng.random() < 0.2 else w.upper() if rng.random() < 0.1 else w for w in words)
            draw.text((rng.integers(0, size), y), line, tuple(int(c) for c in colour), font)
            y += int(size * 1.3)
    edge = DRAWN_SIDE // 2
    turned = img.rotate(rng.normal(0, 6), Image.Resampling.BICUBIC)
    return turned.crop((edge, edge, side - edge, side - edge)).reduce(2)


def write_set(name, pictures):
    index, offset = [], 0
    with open(DATA / f"{name}.u8", "wb") as f:
        for pic in pictures:
            a = np.asarray(pic)
            f.write(a.tobytes())
            index.append({"offset": offset, "height": a.shape[0], "width": a.shape[1]})
            offset += a.size
    (DATA / f"{name}.json").write_text(json.dumps(index))
    return len(index), offset / 3e6


def version():
    return f"{FORMAT} " + hashlib.sha256((HERE / "photos.csv").read_bytes()).hexdigest()


def prepare():
    """Makes the two sets, unless they are there for just this photos.csv."""
    stamp = DATA / "prepared"
    if stamp.exists() and stamp.read_text() == version():
        return
    DATA.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    rows = photos()
    train = [r for r in rows if r["split"] == "train"]
    check = [r for r in rows if r["split"] == "validation"]
    fonts = [str(listed(r)) for r in rows if r["split"] == "font"]
    leaves = (dead_leaves(open_photo(train[i * len(train) // LEAVES_PICTURES]), i) for i in range(LEAVES_PICTURES))
    pages = (page(open_photo(train[i * len(train) // PAGES]), fonts, i) for i in range(PAGES))
    scaled = (p for r in train for p in scaled_for_training(open_photo(r)))
    made = write_set("train", itertools.chain(scaled, leaves, pages))
    print(f"train: {len(train)} photographs, {LEAVES_PICTURES + PAGES} drawn pictures; in all %d, %.1f megapixels" % made)
    made = write_set("validation", (scaled_for_validation(open_photo(r)) for r in check))
    print(f"validation: {len(check)} photographs, %d scaled, %.1f megapixels" % made, flush=True)
    stamp.write_text(version())


def load_set(name):
    flat = np.memmap(DATA / f"{name}.u8", np.uint8, "r")
    for e in json.loads((DATA / f"{name}.json").read_text()):
        h, w = e["height"], e["width"]
        yield flat[e["offset"]:e["offset"] + h * w * 3].reshape(h, w, 3)


def add_8bit_noise(clean, sigma, rng):
    """Gaussian noise as a service meets it: clipped to 0..255 and rounded."""
    return _to_8bit(clean + rng.standard_normal(clean.shape, np.float32) * np.float32(sigma / 255))


def _to_8bit(a):
    return np.rint(a.clip(0, 1) * 255) / 255


class Sampler:
    """Draws batches; what step n gets depends on the seed and n alone.

    In NumPy throughout: torch would spread even these small sums over its
    threads, and on shared cores each then waits for the other to be scheduled.
    """

    def __init__(self, seed):
        self.seed = seed
        self.pictures = list(load_set("train"))
        area = np.array([p.shape[0] * p.shape[1] for p in self.pictures], float)
        # By the root of the area: else the few largest photographs are all it sees.
        self.chance = np.sqrt(area) / np.sqrt(area).sum()

    def batch(self, step, count, side):
        """Noisy and clean patches, count x side x side x 3, in 0..1."""
        rng = np.random.default_rng((self.seed, step))
        pairs = [_pair(_recolour(self._patch(rng, side), rng), rng) for _ in range(count)]
        return np.stack([noisy for noisy, _ in pairs]), np.stack([clean for _, clean in pairs])

    def _patch(self, rng, side):
        pic = self.pictures[rng.choice(len(self.pictures), p=self.chance)]
        patch = _cut(pic, rng, side)
        if rng.random() < 0.5:  # of two, the busier one: sky teaches little
            patch = max(patch, _cut(pic, rng, side), key=_busy)
        patch = np.rot90(patch, rng.integers(4))
        patch = patch[:, ::-1] if rng.random() < 0.5 else patch
        return patch.astype(np.float32) / 255


def _cut(pic, rng, side):
    y = rng.integers(pic.shape[0] - side + 1)
    x = rng.integers(pic.shape[1] - side + 1)
    return pic[y:y + side, x:x + side]


def _busy(patch):
    g = patch[..., 1].astype(np.int16)
    return np.abs(np.diff(g, axis=0)).sum() + np.abs(np.diff(g, axis=1)).sum()


def _recolour(clean, rng):
    """Other lights and cameras than the few photographs show."""
    if rng.random() < 0.2:
        clean = clean[..., rng.permutation(3)]
    if rng.random() < 0.4:
        gamma = rng.uniform(0.6, 1.6)
        gain = rng.uniform(0.7, 1.25) * rng.uniform(0.9, 1.1, 3)
        clean = _to_8bit(clean ** np.float32(gamma) * gain.astype(np.float32))
    return clean


def _pair(clean, rng):
    """A patch with noise, and the same without.

    A grey picture comes to the network three times over. A network that has only seen
    colour takes noise that is alike in all channels for a part of the picture.
    """
    if rng.random() < SHARE_GREY:
        grey = _to_8bit(clean.mean(-1, keepdims=True))
        noisy = add_8bit_noise(grey, rng.uniform(0, SIGMA_MAX), rng)
        return np.repeat(noisy, 3, -1).astype(np.float32), np.repeat(grey, 3, -1).astype(np.float32)
    return _spoil(clean, rng), clean


def _spoil(clean, rng):
    kind = rng.random()
    if kind < SHARE_CLEAN:
        return clean
    if kind < SHARE_CLEAN + SHARE_REAL:
        return _camera(clean, rng)
    return add_8bit_noise(clean, rng.uniform(0, SIGMA_MAX), rng)


def _camera(clean, rng):
    """Poisson-Gaussian noise, in linear light or not, smeared or not, JPEG or not."""
    gamma = np.float32(2.2 if rng.random() < 0.5 else 1)
    light = clean**gamma
    shot = (10 ** rng.uniform(-4, -1.8) * rng.uniform(1, 2, 3)).astype(np.float32)
    read = np.float32(rng.uniform(0, 0.03))
    noise = rng.standard_normal(clean.shape, np.float32)
    if rng.random() < 0.3:  # a camera's demosaicing makes neighbours alike
        k = np.float32(rng.uniform(0.1, 0.5))
        noise += k * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1))
    light = light + np.sqrt(shot * light + read**2) * noise
    out = _to_8bit(light.clip(0, 1) ** (1 / gamma))
    return _jpeg(out, rng) if rng.random() < 0.5 else out


def _jpeg(levels, rng):
    img = Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    buf = io.BytesIO()
    img.save(buf, "JPEG", quality=int(rng.integers(60, 98)), subsampling=int(rng.choice([0, 2])))
    return np.asarray(Image.open(buf), np.float32) / 255


if __name__ == "__main__":
    prepare()
