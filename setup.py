"Hands setuptools what settings.ini says, and the version; name, description, Python and licence stand in pyproject.toml."
import re, tomllib
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
name = tomllib.loads((here/'pyproject.toml').read_text(encoding='utf-8'))['project']['name']
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

def lines(key): return [o for o in cfg[key].splitlines() if o]

suffix = '_requirements'
# By pattern, not by import: the build has none of the requirements.
version = re.search(r'^__version__\s*=\s*[\'"](.+?)[\'"]', (here/name/'__init__.py').read_text(encoding='utf-8'), re.M)[1]

setup(
    version=version,
    keywords=cfg['keywords'].split(),
    packages=[*find_packages(include=[name, f'{name}.*']), f'{name}.results'],
    package_dir={f'{name}.results': 'bench/results'},  # what was measured goes along, so that a page runs without a clone
    include_package_data=False,  # what `package_data` names goes in, wherever the build starts from
    package_data={name: lines('package_data'), f'{name}.results': ['*.json', '*.csv']},
    install_requires=lines('requirements'),
    extras_require={k.removesuffix(suffix): lines(k) for k in cfg if k.endswith(suffix)},
    entry_points=dict(console_scripts=lines('console_scripts'), nbdev=[f'{name}={name}._modidx:d']),
)
