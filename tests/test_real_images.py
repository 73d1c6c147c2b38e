"A few hundred steps on real images: set CIFAR_FAST_TEST_DATA to an archive or a folder of CIFAR-10"
import csv,json,os,subprocess,sys
from pathlib import Path
import numpy as np,pytest

source = os.environ.get('CIFAR_FAST_TEST_DATA')

@pytest.mark.skipif(not source, reason='CIFAR_FAST_TEST_DATA names no data set')
def test_real_images(tmp_path):
    "One epoch of a narrow ResNet-9, 390 steps: the loss falls and the accuracy passes 35 %"
    out = tmp_path/'run'
    subprocess.run([Path(sys.executable).parent/'cifar_fast_train','--recipe','dawn10','--data',source,'--model_args','width=12,scale=.125','--bs','128',
                    '--epochs','1','--no_report','--out',out], check=True)
    with open(out/'steps.csv') as f: losses = [float(r['loss']) for r in csv.DictReader(f)]
    assert len(losses)==50_000//128
    assert np.mean(losses[-50:])<.8*np.mean(losses[:50])
    assert json.loads((out/'results.json').read_text())['test_accuracy']>.35
