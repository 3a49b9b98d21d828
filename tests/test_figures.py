"""The drawings: as docs/figures.py writes them, readable without seeing them, on white."""
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

root = Path(__file__).resolve().parent.parent
figures = runpy.run_path(str(root/'docs/figures.py'))['figures']
ns = '{http://www.w3.org/2000/svg}'

@pytest.mark.parametrize('name', figures())
def test_figure(name):
    svg = figures()[name]
    assert (root/'nbs/images'/name).read_bytes() == svg.encode(), 'python docs/figures.py'
    top = ElementTree.fromstring(svg)
    assert top.get('role') == 'img' and top.find(ns+'title').text and top.find(ns+'desc').text
    rect, box = top.find(ns+'rect'), top.get('viewBox').split()
    assert rect.get('fill') == '#ffffff' and [rect.get('width'), rect.get('height')] == box[2:]

def test_each_is_on_a_page():
    pages = ''.join(f.read_text(encoding='utf8') for f in (root/'nbs').rglob('*.ipynb'))
    assert not [o for o in figures() if f'(images/{o})' not in pages]
