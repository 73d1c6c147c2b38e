"A headless Chromium by playwright"
import shutil
from pathlib import Path
from playwright.sync_api import sync_playwright

chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)

# How wide a page is, is it dark, and text of less than 4.5 : 1 against what is behind it
look_js = '''() => {
  const ctx = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true}), faint = {}
  const rgba = c => (ctx.clearRect(0, 0, 1, 1), ctx.fillStyle = c, ctx.fillRect(0, 0, 1, 1), [...ctx.getImageData(0, 0, 1, 1).data])
  const part = v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4
  const lum = ([r,g,b]) => .2126*part(r) + .7152*part(g) + .0722*part(b)
  const ground = e => e ? rgba(getComputedStyle(e).backgroundColor) : [255,255,255,255]
  const behind = e => ground(e)[3]>250 ? ground(e) : behind(e.parentElement)
  for (const d of document.querySelectorAll('details')) d.open = true
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || e.closest('svg, .headerlink') || ![...e.childNodes].some(n => n.nodeType==3 && n.data.trim())) continue
    const [a, b] = [lum(rgba(getComputedStyle(e).color)), lum(behind(e))].sort((x, y) => y-x), r = (a+.05)/(b+.05)
    if (r<4.5) faint[`${e.tagName}.${e.className}`] = r
  }
  return [document.documentElement.scrollWidth, ground(document.body).slice(0, 3).every(o => o<80), faint]
}'''

class Browser:
    def __enter__(self):
        self.errors,self.requests,self.play = [],[],sync_playwright().start()
        self.page = self.play.chromium.launch(executable_path=chromium, args=['--no-sandbox']).new_page()
        self.cdp = self.page.context.new_cdp_session(self.page)
        self.page.on('console', lambda o: self.errors.append(o.text) if o.type in ('error','warning','assert') else None)
        self.page.on('pageerror', lambda o: self.errors.append(str(o)))
        self.page.on('requestfailed', lambda o: self.errors.append(o.url) if 'ABORTED' not in o.failure else None)  # as when a page is left
        self.page.on('request', lambda o: self.requests.append(o.url))
        return self

    def __exit__(self, *args): self.play.stop()
    def look(self, path, width, dark):
        "A page on a phone or a desk, by day or by night, is no wider than the screen, easy to read and silent; what it asks for"
        for o in (self.errors,self.requests): o.clear()
        self.cdp.send('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=width<400))
        self.page.emulate_media(color_scheme='dark' if dark else 'light')
        self.page.goto(Path(path).resolve().as_uri())
        wide,is_dark,faint = self.page.evaluate(look_js)
        assert wide<=width and is_dark==dark and not faint and not self.errors, (path, wide, is_dark, faint, self.errors)
        return [o for o in self.requests if not o.startswith('data:')]
