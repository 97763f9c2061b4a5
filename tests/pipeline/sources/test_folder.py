from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from pipeline.sources import FolderSource
from privacy.errors import DataError


def load(path, toy, **change):
    return FolderSource(kind="folder", path=path).load(**(toy.spec | change))


def test_grey_and_colour_pngs_are_read_class_by_class(toy, rgb_toy, tmp_path, same):
    same(load(toy.to_folder(tmp_path / "grey"), toy), toy)
    same(load(rgb_toy.to_folder(tmp_path / "rgb"), rgb_toy), rgb_toy)


def test_jpegs_are_read_and_hidden_files_are_not(toy, tmp_path):
    toy.to_folder(tmp_path)
    Image.fromarray(np.full((6, 6), 200, dtype=np.uint8)).save(tmp_path / "cat" / "zz.JPG", "JPEG")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    data = load(tmp_path, toy)
    assert len(data) == 11
    row = np.count_nonzero(toy.labels == 0)
    assert abs(data.values[row].astype(int) - 200).max() <= 1


def test_labels_follow_the_specs_class_list_not_the_alphabet(toy, tmp_path):
    toy.to_folder(tmp_path)
    turned = load(tmp_path, toy, classes=("eel", "dog", "cat"))
    assert np.array_equal(turned.labels, np.sort(2 - toy.labels))
    assert np.array_equal(turned.values[-1], toy.images[toy.labels == 0][-1])


def test_an_unknown_folder_is_refused_by_name(toy, tmp_path):
    toy.to_folder(tmp_path)
    (tmp_path / "fox").mkdir()
    text = r"folders named after the classes \(cat, dog, eel\) .* found 1 others.*\nin .*fox$"
    with pytest.raises(DataError, match=text) as caught:
        load(tmp_path, toy)
    assert "fox" not in str(caught.value)


def test_a_class_without_images_is_fine_and_a_set_without_is_not(toy, tmp_path):
    toy.to_folder(tmp_path)
    assert len(load(tmp_path, toy, classes=(*toy.classes, "fox"))) == 10
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the data set is empty"):
        load(tmp_path / "empty", toy)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: Image.new("L", (6, 7)).save(path), "6×6 pixels was expected, found 7×6"),
        (lambda path: Image.new("RGB", (6, 6)).save(path), "8-bit grey.*found 8-bit RGB"),
        (lambda path: Image.new("I;16", (6, 6)).save(path), "8-bit grey.*found mode I;16"),
        (lambda path: Image.new("L", (6, 6)).save(path, "GIF"), "PNG or JPEG"),
        (lambda path: path.write_bytes(b"not an image"), "PNG or JPEG"),
        (lambda path: path.write_bytes(b""), "PNG or JPEG"),
        (lambda path: path.mkdir(), "only files ending in"),
    ],
)
def test_a_file_that_does_not_fit_is_named_in_a_note_alone(toy, tmp_path, make, text):
    toy.to_folder(tmp_path)
    make(tmp_path / "dog" / "bad.png")
    with pytest.raises(DataError, match=rf"{text}.*\nin .*bad\.png$") as caught:
        load(tmp_path, toy)
    # A name may be a person's, and the number of images of a class is private.
    assert "bad.png" not in str(caught.value)
    assert "dog" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_png_cut_off_or_changed_anywhere_is_named(toy, tmp_path):
    toy.to_folder(tmp_path)
    path = min((tmp_path / "cat").iterdir())
    data = path.read_bytes()
    start = data.index(b"IDAT")
    for position in range(start, len(data) - 12, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        for content in (data[:position], damaged):
            path.write_bytes(content)
            with pytest.raises(DataError, match=path.name):
                load(tmp_path, toy)


def test_stray_files_and_missing_folders_are_refused(toy, tmp_path):
    toy.to_folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"\.png, \.jpg, \.jpeg.*\nin .*notes\.txt"):
        load(tmp_path, toy)
    (tmp_path / "cat" / "notes.txt").rename(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"folders named after the classes.*\nin .*notes\.txt"):
        load(tmp_path, toy)
    with pytest.raises(DataError, match="a folder was expected, found nothing"):
        load(tmp_path / "absent", toy)
    with pytest.raises(DataError, match="a folder was expected, found a file"):
        load(tmp_path / "notes.txt", toy)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "/etc", "..", ".", "", "a/"])
def test_a_class_is_one_sub_folder_and_leads_nowhere_else(toy, tmp_path, name):
    toy.to_folder(tmp_path / "in")
    Image.new("L", (6, 6)).save(_made(tmp_path / "elsewhere") / "1.png")
    Image.new("L", (6, 6)).save(_made(tmp_path / "in" / "cat" / "b") / "1.png")
    with pytest.raises(DataError, match="one sub-folder can have"):
        load(tmp_path / "in", toy, classes=(*toy.classes, name))


@pytest.mark.parametrize("name", ["08", "1e3", "no", ".dot", "cat.png", "-rf", "a b", "कुत्ता"])
def test_a_folder_of_any_name_is_its_class(toy, tmp_path, name):
    Image.new("L", (6, 6)).save(_made(tmp_path / name) / "1.png")
    assert load(tmp_path, toy, classes=("other", name)).labels.tolist() == [1]


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_two_spellings_of_unicode_are_one_name(toy, tmp_path, forms):
    on_disk, in_spec = (normalize(form, "café") for form in forms)
    Image.new("L", (6, 6)).save(_made(tmp_path / on_disk) / "1.png")
    assert load(tmp_path, toy, classes=("other", in_spec)).labels.tolist() == [1]
    with pytest.raises(DataError, match="two names differ only in how Unicode spells them"):
        load(tmp_path, toy, classes=(on_disk, in_spec))
    _made(tmp_path / in_spec)
    with pytest.raises(DataError, match="two folders have the name of one class"):
        load(tmp_path, toy, classes=("other", in_spec))


def _made(folder):
    folder.mkdir(parents=True)
    return folder
