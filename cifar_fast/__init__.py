__version__ = "0.1.0"

import warnings
warnings.filterwarnings('ignore', '`torch.jit.script`', FutureWarning)  # what fastai 2.8.7 draws from torch 2.15 at import

def main():
    'The entry of all scripts. It is light, so that whoever stops one while it imports the libraries gets a line, too'
    import os,signal,sys
    signals = [s for s in (signal.SIGINT,signal.SIGTERM) if signal.getsignal(s)!=signal.SIG_IGN]
    def stop(sig, frame):
        if os.environ.get('RANK', '0')=='0': os.write(2, b'\nstopped before anything began: give the same command again\n')
        os._exit(128+sig)
    for s in signals: signal.signal(s, stop)
    if 'LOCAL_RANK' in os.environ: os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')  # of a lost process we tell by ourselves
    try: from .cli import main
    except ImportError as e:
        print(f'{os.path.basename(sys.argv[0])}: {e}', file=sys.stderr)
        return 2
    code = main()
    for s in signals: signal.signal(s, signal.SIG_IGN)  # all is done: what is left is the end of the process
    return code
