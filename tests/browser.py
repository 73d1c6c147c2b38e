"A headless Chromium driven through two pipes (its DevTools protocol): no driver, no further package"
import base64,fcntl,json,os,select,shutil,subprocess,tempfile,time
from pathlib import Path

chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
flags = '''--headless --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe'''.split()

# Text of less than 4.5 : 1 against what is behind it
low_contrast_js = '''(() => {
  const ctx = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})
  const seen = {}, rgba = c => seen[c] ??= paint(c)
  const paint = c => {
    ctx.clearRect(0, 0, 1, 1)
    ctx.fillStyle = c
    ctx.fillRect(0, 0, 1, 1)
    return [...ctx.getImageData(0, 0, 1, 1).data]
  }
  const lum = c => {
    const [r,g,b] = c.map(v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4)
    return .2126*r + .7152*g + .0722*b
  }
  const behind = new Map(), back = e => {
    if (!e) return [255,255,255,255]
    if (!behind.has(e)) {
      const c = rgba(getComputedStyle(e).backgroundColor)
      behind.set(e, c[3]>250 ? c : back(e.parentElement))
    }
    return behind.get(e)
  }
  const bad = {}
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('script, svg, .anchor, .copy') || ![...e.childNodes].some(n => n.nodeType==3 && n.data.trim())) continue
    const [a, b] = [lum(rgba(getComputedStyle(e).color)), lum(back(e))].sort((x, y) => y-x), r = (a+.05)/(b+.05)
    if (r<4.5) bad[`${e.tagName}.${e.className}`] = r
  }
  return bad
})()'''

class Browser:
    "One page; `goto` it, `js` in it, `key` it; `errors` and `requests` tell what happened since the last `goto`"
    def __init__(self, width=1280, height=900, timeout=60):
        self.home,self.n,self.session,self.buf,self.timeout = tempfile.TemporaryDirectory(ignore_cleanup_errors=True),0,None,b'',timeout
        self.events = []
        (its_in,self.to),(self.back,its_out) = os.pipe(),os.pipe()
        high = [fcntl.fcntl(o, fcntl.F_DUPFD, 20) for o in (its_in,its_out)]  # out of the way of 3 and 4, where it wants them
        cmd = ['bash','-c',f'exec "$@" 3<&{high[0]} 4>&{high[1]}','bash',chromium,*flags,f'--user-data-dir={self.home.name}']
        self.proc = subprocess.Popen(cmd, pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for o in (its_in,its_out,*high): os.close(o)
        target = self.send('Target.createTarget', url='about:blank')['targetId']
        self.session = self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for o in ('Page','Runtime','Log','Network'): self.send(f'{o}.enable')
        self.size(width, height)

    def __enter__(self): return self
    def __exit__(self, *args):
        self.session = None
        try: self.send('Browser.close')
        except (EOFError,OSError): pass
        self.proc.wait(30)
        for o in (self.to,self.back): os.close(o)
        self.home.cleanup()

    def receive(self):
        "The next message, which is also remembered if it is an event"
        end = time.monotonic()+self.timeout
        while b'\0' not in self.buf:
            if not select.select([self.back], [], [], max(0, end-time.monotonic()))[0]: raise TimeoutError('the browser says nothing')
            chunk = os.read(self.back, 1<<16)
            if not chunk: raise EOFError('the browser is gone')
            self.buf += chunk
        msg,_,self.buf = self.buf.partition(b'\0')
        msg = json.loads(msg)
        if 'method' in msg: self.events.append((msg['method'],msg['params']))
        return msg

    def send(self, method, **params):
        "Call a method of the protocol; its result"
        self.n += 1
        msg = dict(id=self.n, method=method, params=params, **({'sessionId':self.session} if self.session else {}))
        os.write(self.to, json.dumps(msg).encode() + b'\0')
        while (msg := self.receive()).get('id')!=self.n: pass
        if 'error' in msg: raise RuntimeError(f"{method}: {msg['error']}")
        return msg['result']

    def goto(self, url):
        "Open an address, or a file with or without an #anchor"
        path,_,anchor = str(url).partition('#')
        self.events = []
        self.send('Page.navigate', url=str(url) if '://' in path else Path(path).resolve().as_uri() + (f'#{anchor}' if anchor else ''))
        while not any(m=='Page.loadEventFired' for m,_ in self.events): self.receive()
        return self

    def js(self, code):
        "What `code`, an expression or a promise, comes to"
        res = self.send('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in res: raise RuntimeError(res['exceptionDetails'].get('exception', {}).get('description', 'error'))
        return res['result'].get('value')

    def until(self, code, seconds=20):
        "Wait until `code` is true"
        end = time.monotonic()+seconds
        while not (res := self.js(code)):
            if time.monotonic()>end: raise TimeoutError(code)
            time.sleep(.05)
        return res

    def size(self, width, height=900, mobile=False):
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def dark(self, on=True):
        scheme = dict(name='prefers-color-scheme', value='dark' if on else 'light')
        self.send('Emulation.setEmulatedMedia', features=[scheme])
    def type(self, text): self.send('Input.insertText', text=text)
    def key(self, key, text=None):
        codes = dict(Enter=13, Escape=27, ArrowUp=38, ArrowDown=40, Tab=9)
        params = dict(key=key, windowsVirtualKeyCode=codes.get(key, ord(key[0].upper())), **({'text':text} if text else {}))
        self.send('Input.dispatchKeyEvent', type='keyDown', **params)
        self.send('Input.dispatchKeyEvent', type='keyUp', **{k:v for k,v in params.items() if k!='text'})

    def unfold(self): self.js("for (const d of document.querySelectorAll('details')) d.open = true")
    def shot(self, path): Path(path).write_bytes(base64.b64decode(self.send('Page.captureScreenshot')['data']))

    @property
    def errors(self):
        "Exceptions, console errors and warnings, and files that could not be loaded"
        self.js('1')
        return [str(p)[:300] for m,p in self.events if m=='Runtime.exceptionThrown' or m=='Log.entryAdded' or m=='Network.loadingFailed'
                or m=='Runtime.consoleAPICalled' and p['type'] in ('error','warning','assert')]

    @property
    def requests(self): return [p['request']['url'] for m,p in self.events if m=='Network.requestWillBeSent']

    @property
    def page_width(self): return self.js('document.documentElement.scrollWidth')
    @property
    def is_dark(self): return self.js(r"getComputedStyle(document.body).backgroundColor.match(/\d+/g).every(o => o<80)")
    @property
    def low_contrast(self): return self.js(low_contrast_js)
