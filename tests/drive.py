"""Read argument lists as JSON, run each as a script, write (exit code, stdout, stderr) as JSON; importing once saves seconds a case

A list may begin with the name of a script; without one it is `cifar_fast_train`"""
import contextlib,io,json,sys,traceback
import cifar_fast.cli

answers = []
for argv in json.load(sys.stdin):
    out,err,code = io.StringIO(),io.StringIO(),0
    if not argv or not argv[0].startswith('cifar_fast_'): argv = ['cifar_fast_train', *argv]
    sys.argv,script = argv,getattr(cifar_fast.cli, argv[0])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: script()  # here and not in a function: fastcore takes a call from a file's top level for a script
        except SystemExit as e: code = e.code or 0
        except BaseException: code = traceback.print_exc() or 1
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
