"""Sets of human scores as distributed, a few rows of each, with their images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from scipy.io import savemat


def pictures(folder: Path, names: Sequence[str]) -> None:
    """One small image of its own content for each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (number % 256, 7 * number % 256, len(name))).save(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def workbook(path: Path, rows: Sequence[Sequence[object]], top: int = 1, left: int = 0, hidden: bool = False) -> Path:
    """A workbook with one visible sheet, its table starting below and right of the corner as asked."""

    def cell(row: int, column: int, value: object) -> str:
        place = f"{chr(ord('A') + left + column)}{top + row}"
        if isinstance(value, str):
            return f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        return f'<c r="{place}"><v>{value!r}</v></c>'

    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    link = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    body = "".join(
        f'<row r="{top + r}">{"".join(cell(r, c, value) for c, value in enumerate(row))}</row>'
        for r, row in enumerate(rows)
    )
    secret = '<sheet name="old" sheetId="2" state="hidden" r:id="rId2"/>' if hidden else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as book:
        sheets = f'{secret}<sheet name="scores" sheetId="1" r:id="rId1"/>'
        book.writestr("xl/workbook.xml", f'<workbook {main} xmlns:r="{link}"><sheets>{sheets}</sheets></workbook>')
        relation = f'<Relationship Id="rId1" Type="{link}/worksheet" Target="worksheets/sheet1.xml"/>'
        book.writestr("xl/_rels/workbook.xml.rels", f"<Relationships>{relation}</Relationships>")
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {main}><sheetData>{body}</sheetData></worksheet>")
    return path


KONIQ = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set\n"


def koniq(folder: Path) -> None:
    # Row 10004473376.jpg of the set itself: its MOS is 77.38 (1 to 100), its SD 0.5273 (1 to 5).
    rows = [
        "10004473376.jpg,0,0,0.238095238095,0.695238095238,0.0666666666667,105,77.3836206897,0.527277894494,training",
        "2.jpg,0,0.5,0.5,0,0,2,40,0.7,validation",
        "3.jpg,1,0,0,0,0,4,5,0,test",
    ]
    write(folder / "koniq10k_distributions_sets.csv", KONIQ + "\n".join(rows))
    pictures(folder / "1024x768", ["10004473376.jpg", "2.jpg", "3.jpg"])


def kadid(folder: Path) -> None:
    names = [f"I{r:02d}_{t:02d}_{level:02d}.png" for r in (1, 2) for t in (1, 7) for level in (1, 2, 3)]
    text = "".join(f"{n},{n[:3]}.png,{4.57 - int(n[8]) / 2},{0.496}\n" for n in names)
    write(folder / "dmos.csv", "dist_img,ref_img,dmos,var\n" + text)
    pictures(folder / "images", [*names, "I01.png", "I02.png"])


def agiqa(folder: Path) -> None:
    head = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align\n"
    write(
        folder / "data.csv",
        head + 'a.jpg,"statue of a man, at night",,,,0.9,0.2,4.4,0.6\nb.jpg,sushi,,,,3.1,0.6,0.2,0.6\n'
        "c.jpg,sushi,,,anime,2.2,0.5,0.1,0.6\n",
    )
    pictures(folder, ["a.jpg", "b.jpg", "c.jpg"])


def spaq(folder: Path) -> None:
    rows = [("Image name", "MOS", "Brightness"), ("00001.jpg", 48.86, 50.0), ("00002.jpg", 62.5, 40.1)]
    workbook(folder / "Annotations" / "MOS and Image attribute scores.xlsx", rows)
    pictures(folder / "TestImage", ["00001.jpg", "00002.jpg"])


def live_challenge(folder: Path) -> None:
    names = [*(f"t{k}.bmp" for k in range(1, 8)), "3.bmp", "4.bmp", "5.bmp"]
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    (folder / "Data").mkdir(parents=True)
    savemat(folder / "Data" / "AllImages_release.mat", {"AllImages_release": cells})
    savemat(folder / "Data" / "AllMOS_release.mat", {"AllMOS_release": np.linspace(20, 80, 10)[None]})
    savemat(folder / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": np.linspace(17, 21, 10)[None]})
    pictures(folder / "Images", [*(f"trainingImages/{name}" for name in names[:7]), *names[7:]])


def tid(folder: Path) -> None:
    names = ["I01_01_1.bmp", "i01_01_2.bmp", "i02_03_1.bmp"]
    write(folder / "mos_with_names.txt", "".join(f"{5.5 - k} {name}\n" for k, name in enumerate(names)))
    write(folder / "mos_std.txt", "0.13\n0.16\n0.15\n")
    # On disk the first one is called i01_01_1.bmp: names differ in case.
    pictures(folder / "distorted_images", [name.lower() for name in names])


CSIQ_NAMES = [f"{i}.{t}.{level}.png" for i in ("1600", "elk") for t in ("AWGN", "jpeg2000") for level in (1, 2, 3)]


def csiq(folder: Path) -> None:
    rows: list[tuple[object, ...]] = [("image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")]
    for name in CSIQ_NAMES:
        image, kind, level, _ = name.split(".")
        written = {"AWGN": "noise", "jpeg2000": "jpeg 2000"}[kind]
        rows.append((1600 if image == "1600" else image, 1, written, int(level), 0.05, 0.2 * int(level)))
    # As in the real workbook: the table starts at D4, behind hidden sheets.
    workbook(folder / "csiq.DMOS.xlsx", rows, top=4, left=3, hidden=True)
    pictures(folder / "dst_imgs", [f"{name.split('.')[1].lower()}/{name}" for name in CSIQ_NAMES])
    pictures(folder / "src_imgs", ["1600.png", "elk.png"])


def live(folder: Path) -> None:
    folders = [("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174)]
    original = np.arange(982) % 5 == 0
    names = np.empty((1, 982), dtype=object)
    names[0, :] = [f"ref{k % 29}.bmp" for k in range(982)]
    savemat(
        folder / "dmos_realigned.mat",
        {"dmos_new": np.linspace(0, 90, 982)[None], "dmos_std": np.full((1, 982), 8.0), "orgs": original[None]},
    )
    savemat(folder / "refnames_all.mat", {"refnames_all": names})
    files = [f"{name}/img{k}.bmp" for name, count in folders for k in range(1, count + 1)]
    image = Image.new("RGB", (2, 2))
    for name in dict(folders):
        (folder / name).mkdir()
    for number, file in enumerate(files):
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(folder / file)


def pipal(folder: Path) -> None:
    for reference in ("A0001", "A0002"):
        names = [f"{reference}_0{k}_00.bmp" for k in range(3)]
        write(
            folder / "Train_Label" / f"{reference}.txt", "".join(f"{n},{1400 + 9 * k}\n" for k, n in enumerate(names))
        )
        pictures(folder / "Train_Dist", names)
    pictures(folder / "Train_Ref", ["A0001.bmp", "A0002.bmp"])


def flive(folder: Path) -> None:
    names = ["voc/a.jpg", "voc/b.jpg", "ava/c.jpg"]
    write(folder / "labels_image.csv", "name,mos,zscores\n" + "".join(f"{n},{70 + k},1\n" for k, n in enumerate(names)))
    write(folder / "labels<=640_padded.csv", "name_image,mos_image,is_valid\nvoc/a.jpg,70,False\nvoc/b.jpg,71,True\n")
    write(folder / "labels>640.csv", "name_image,mos_image,is_valid\nava/c.jpg,72,False\n")
    pictures(folder / "database", names)


SETS: dict[str, Callable[[Path], None]] = {
    "KonIQ-10k": koniq,
    "KADID-10k": kadid,
    "AGIQA-3K": agiqa,
    "SPAQ": spaq,
    "LIVE-C": live_challenge,
    "TID2013": tid,
    "CSIQ": csiq,
    "LIVE": live,
    "PIPAL": pipal,
    "FLIVE": flive,
}
