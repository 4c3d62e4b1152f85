"""Tables and groups: nothing from outside is markup, and both forms hold the same cells."""

from xml.etree import ElementTree

from jaxtune.display.tables import Table, escaped, fragment, group

HOSTILE = "</td><b onclick='x'>\x1b[0m"


def test_a_table_has_its_cells_in_both_forms():
    table = Table(
        ("name", "count"), [{"name": HOSTILE, "count": "3"}, {"name": "b\nc"}], ("count",), [0]
    )
    root = ElementTree.fromstring(table.html())
    cells = [[cell.text or "" for cell in row] for row in root]
    assert cells == [["name", "count"], [HOSTILE.replace("\x1b", "\\x1b"), "3"], ["b\nc", ""]]
    assert [row.get("style") for row in root] == [None, "font-weight:600", None]
    assert [cell.get("style") for cell in root[1]] == [None, "text-align:right"]
    lines = table.lines()
    assert len(lines) == 3 and lines[1].endswith("3") and lines[2] == r"b\nc"
    assert "\x1b" not in "".join(lines)


def test_groups_are_open_or_closed_and_their_titles_text():
    for opened in (True, False):
        text = group("<i>", "<p>inside</p>", opened=opened)
        root = ElementTree.fromstring(text.replace("<details open>", "<details open='yes'>"))
        assert [each.text for each in root] == ["<i>", "inside"]
        assert (root.get("open") == "yes") == opened


def test_styles_apply_inside_the_fragment_alone():
    text = fragment("<p>a</p>", ".jaxtune p { margin: 0 }")
    root = ElementTree.fromstring(text)
    style = root[0].text
    selectors = [each.split("{")[0] for each in style.split("}") if each.strip()]
    assert root.get("class") == "jaxtune" and root[1].text == "a" and len(selectors) > 4
    assert all(
        part.strip().startswith(".jaxtune") for each in selectors for part in each.split(",")
    )
    assert escaped("<&>\x07") == r"&lt;&amp;&gt;\x07"
