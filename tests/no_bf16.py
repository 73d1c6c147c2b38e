"""Imported first, and with CIFAR_FAST_NO_BF16=1 in the environment: this processor has no bf16 instructions

What is written in a notebook or expected by a test must not depend on them: most of the authors' machines have them, many of the
users' have not."""
import os
if os.environ.get('CIFAR_FAST_NO_BF16'):
    import cifar_fast.core
    cifar_fast.core.has_bf16 = lambda device='cpu': False
