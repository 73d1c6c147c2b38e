"A headless Chromium by playwright: one page, what it loaded, and what went wrong since the last `goto`"
import shutil
from pathlib import Path
from playwright.sync_api import sync_playwright

chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)

# Text of less than 4.5 : 1 against what is behind it
low_contrast_js = '''() => {
  const ctx = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), bad = {}
  const rgba = c => (ctx.clearRect(0, 0, 1, 1), ctx.fillStyle = c, ctx.fillRect(0, 0, 1, 1), [...ctx.getImageData(0, 0, 1, 1).data])
  const part = v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4
  const lum = ([r,g,b]) => .2126*part(r) + .7152*part(g) + .0722*part(b)
  const style = e => getComputedStyle(e), ground = e => e ? rgba(style(e).backgroundColor) : [255,255,255,255]
  const behind = e => ground(e)[3]>250 ? ground(e) : behind(e.parentElement)
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || e.closest('svg, .headerlink') || ![...e.childNodes].some(n => n.nodeType==3 && n.data.trim())) continue
    const [a, b] = [lum(rgba(style(e).color)), lum(behind(e))].sort((x, y) => y-x), r = (a+.05)/(b+.05)
    if (r<4.5) bad[`${e.tagName}.${e.className}`] = r
  }
  return bad
}'''

class Browser:
    def __enter__(self):
        self.errors,self.requests,self.play = [],[],sync_playwright().start()
        self.page = self.play.chromium.launch(executable_path=chromium, args=['--no-sandbox']).new_page()
        self.cdp = self.page.context.new_cdp_session(self.page)
        self.page.on('console', lambda o: self.errors.append(o.text) if o.type in ('error','warning','assert') else None)
        for o in ('pageerror','requestfailed'): self.page.on(o, lambda o: self.errors.append(str(o)))
        self.page.on('request', lambda o: self.requests.append(o.url))
        return self

    def __exit__(self, *args): self.play.stop()
    def size(self, width, height=900, mobile=False):
        self.cdp.send('Emulation.setDeviceMetricsOverride', dict(width=width, height=height, deviceScaleFactor=1, mobile=mobile))
    def dark(self, on=True): self.page.emulate_media(color_scheme='dark' if on else 'light')
    def unfold(self): self.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    def goto(self, path, query=''):
        for o in (self.errors,self.requests): o.clear()
        self.page.goto(Path(path).resolve().as_uri()+query)
        return self

    @property
    def page_width(self): return self.page.evaluate('document.documentElement.scrollWidth')
    @property
    def is_dark(self): return self.page.evaluate(r"getComputedStyle(document.body).backgroundColor.match(/\d+/g).every(o => o<80)")
    @property
    def low_contrast(self): return self.page.evaluate(low_contrast_js)
