"Read argument lists as JSON, run `cifar_fast_train` as a script on each, write (exit code, stdout, stderr) as JSON; importing once saves seconds a case"
import contextlib,io,json,sys,traceback
from cifar_fast.cli import cifar_fast_train

answers = []
for argv in json.load(sys.stdin):
    out,err,code = io.StringIO(),io.StringIO(),0
    sys.argv = ['cifar_fast_train', *argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: cifar_fast_train()  # here and not in a function: fastcore takes a call from a file's top level for a script
        except SystemExit as e: code = e.code or 0
        except BaseException: code = traceback.print_exc() or 1
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
