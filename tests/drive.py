"""Read argument lists as JSON, run each as a script, write (exit code, stdout, stderr) as JSON; importing once saves seconds a case

A list may begin with the name of a script; without one it is `cifar_fast_train`"""
import no_bf16,contextlib,io,json,sys,traceback  # noqa: F401, no_bf16 before any room is imported
from cifar_fast.cli import main

answers = []
for argv in json.load(sys.stdin):
    out,err = io.StringIO(),io.StringIO()
    sys.argv = argv if argv and argv[0].startswith('cifar_fast_') else ['cifar_fast_train', *argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = main()
        except SystemExit as e: code = e.code or 0  # of --help
        except BaseException: code = traceback.print_exc() or 1
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
