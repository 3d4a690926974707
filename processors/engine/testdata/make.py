"""Makes the pictures that Go's own encoders cannot. Run in this folder with Pillow 11.3
or later; the results are committed, and the expected colours stand in the tests.

    python3 make.py
"""
import struct
from PIL import Image

RED, GREEN, BLUE, YELLOW = (230, 30, 30), (30, 200, 30), (30, 30, 230), (230, 220, 40)


def quadrants(mode, size, colours):
    """Top left, top right, bottom left, bottom right."""
    picture = Image.new(mode, size)
    w, h = size[0] // 2, size[1] // 2
    for i, colour in enumerate(colours):
        x, y = i % 2 * w, i // 2 * h
        picture.paste(colour, (x, y, x + w, y + h))
    return picture


def p3_profile():
    """Display P3 with a plain gamma of 2.2, as a version 2 ICC profile."""
    def fixed(x):
        return struct.pack(">i", round(x * 65536))

    def xyz(*v):
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, v))

    text = b"Display P3 gamma 2.2\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407),
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        tags[tag] = curve
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642) + fixed(1) + fixed(0.8249)
    header += bytes(128 - len(header))
    return header + struct.pack(">I", len(tags)) + table + body


frames = [Image.new("RGB", (48, 32), c) for c in (RED, GREEN, BLUE)]
frames[0].save("animated.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
frames[0].save("animated.avif", save_all=True, append_images=frames[1:], duration=100, quality=90)
frames[0].save("animated.png", save_all=True, append_images=frames[1:], duration=100)

quadrants("RGB", (64, 48), (RED, GREEN, BLUE, YELLOW)).save("still.avif", quality=90)
quadrants("RGBA", (64, 48), (RED + (255,), GREEN + (0,), BLUE + (128,), YELLOW + (255,))).save("alpha.webp", lossless=True)

# cyan, magenta, yellow and black ink; Pillow marks and inverts it as Adobe does
quadrants("CMYK", (64, 48), ((255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255))).save("cmyk.jpg", quality=95)

Image.new("RGB", (32, 32), (200, 100, 50)).save("p3.png", icc_profile=p3_profile())
Image.new("RGB", (32, 32), (200, 100, 50)).save("p3.jpg", icc_profile=p3_profile(), quality=100, subsampling=0)
Image.new("RGB", (32, 32), (200, 100, 50)).save("broken-profile.png", icc_profile=b"this is no profile" * 20)

# camera made: turned by Exif, in the two formats that have it beside JPEG
exif = Image.Exif()
exif[0x0112] = 6
turned = quadrants("RGB", (64, 48), (RED, GREEN, BLUE, YELLOW))
turned.save("turned.webp", lossless=True, exif=exif)
turned.save("turned.png", exif=exif)

Image.linear_gradient("L").save("grey.jpg", quality=90)
