"The metadata stand in settings.ini and nowhere else; this hands them to setuptools"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {k: cfg[f'{k}_requirements'].split() for k in ('onnx','timm','demo','processes','tensorboard','wandb','trackio')}
needed = [o for k in ('onnx','demo','processes','tensorboard') for o in extras[k]]  # by the tests

setup(
    version=cfg['version'], description=cfg['description'], author=cfg['author'], author_email=cfg['author_email'],
    license='Apache-2.0', keywords=cfg['keywords'].split(),
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    install_requires=cfg['requirements'].split(),
    extras_require={**extras, 'dev': [*cfg['dev_requirements'].split(), *needed]},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
)
