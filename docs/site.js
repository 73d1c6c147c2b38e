// Search, theme, menu: no library, and nothing is fetched from elsewhere
const $ = (s, e=document) => e.querySelector(s), root = document.documentElement.dataset.root
const make = (tag, attrs, ...kids) => { const e = Object.assign(document.createElement(tag), attrs); e.append(...kids); return e }

// Theme: the system's, until the switch is used; then what was chosen
const isDark = () => (document.documentElement.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark'
$('.theme').onclick = () => {
  const t = document.documentElement.dataset.theme = isDark() ? 'light' : 'dark'
  try { localStorage.setItem('theme', t) } catch {}
}

// Menu on small screens; the table of contents folds there
const menu = $('.menu')
const showMenu = on => { document.body.classList.toggle('nav-open', on); menu.setAttribute('aria-expanded', on) }
menu.onclick = () => showMenu(!document.body.classList.contains('nav-open'))
const nav = $('#site-nav'), here = $('[aria-current]', nav)
if (here) nav.scrollTop = here.offsetTop - nav.clientHeight/2
const toc = $('#site-toc'), wide = matchMedia('(min-width: 1200px)')
if (toc) { const fit = () => { toc.open = wide.matches }; wide.onchange = fit; fit() }

// Source: fold and unfold all; copy
const unfold = $('.unfold')
if (unfold) {
  unfold.hidden = false
  unfold.onclick = () => {
    const open = unfold.textContent.startsWith('Unfold')
    for (const d of document.querySelectorAll('details.src')) d.open = open
    unfold.textContent = open ? 'Fold all source' : 'Unfold all source'
  }
}
if (navigator.clipboard) for (const e of document.querySelectorAll('.hl:not(.sig)')) {
  const b = make('button', {type: 'button', className: 'copy', textContent: 'Copy'})
  b.onclick = async () => { await navigator.clipboard.writeText($('pre', e).textContent); b.textContent = 'Copied'; setTimeout(() => b.textContent = 'Copy', 1500) }
  e.append(b)
}

// Search: the index is a script, so that it also loads from a folder (file://), and only when somebody searches
const box = $('#site-search'), hits = $('#site-hits')
let loading, at = -1
const load = () => loading ??= new Promise((ok, no) => document.head.append(make('script', {src: root + 'search.js', onload: ok, onerror: no})))
const wordStart = w => new RegExp('(?<![a-z0-9])' + w.replace(/[^a-z0-9]/g, '\\$&'), 'i')
const score = ([title, url, kind, page, text], q, words) => {
  const t = title.toLowerCase(), rest = `${page} ${text}`
  if (!words.every(w => t.includes(w) || wordStart(w).test(rest))) return 0
  const bare = t.replace(/[_.\s-]/g, ''), b = q.replace(/[_.\s-]/g, '')
  const fit = t === q ? 100 : t.split('.').pop() === q ? 90 : bare === b ? 80 : t.startsWith(q) ? 60 : t.includes(q) ? 40 : words.every(w => t.includes(w)) ? 30 : 1
  return fit + (fit > 1 ? {symbol: 9, h1: 8, h2: 5}[kind] || 3 : Math.min(5, text.toLowerCase().split(words[0]).length-1)/10)
}
const snippet = (text, words) => {
  const i = words.map(w => text.search(wordStart(w))).find(i => i >= 0) ?? 0, from = Math.max(0, i-50)
  const s = (from ? '…' : '') + text.slice(from, from+140), parts = []
  let rest = s
  for (;;) {
    const [k, w] = words.map(w => [rest.search(wordStart(w)), w]).filter(([k]) => k >= 0).sort((a, b) => a[0]-b[0])[0] || []
    if (w === undefined) return [...parts, rest]
    parts.push(rest.slice(0, k), make('mark', {textContent: rest.slice(k, k+w.length)}))
    rest = rest.slice(k+w.length)
  }
}
const mark = i => {
  const all = [...hits.children].filter(e => e.role === 'option')
  at = all.length ? (i+all.length) % all.length : -1
  all.forEach((e, j) => e.setAttribute('aria-selected', j === at))
  if (at >= 0) { box.setAttribute('aria-activedescendant', all[at].id); all[at].scrollIntoView({block: 'nearest'}) } else box.removeAttribute('aria-activedescendant')
}
const close = () => { hits.hidden = true; hits.replaceChildren(); mark(0); box.setAttribute('aria-expanded', false) }
const search = async () => {
  const q = box.value.trim().toLowerCase(), words = q.split(/\s+/).filter(Boolean)
  if (!words.length) return close()
  try { await load() } catch { return }
  if (q !== box.value.trim().toLowerCase()) return
  const found = window.searchIndex.map(o => [score(o, q, words), o]).filter(([s]) => s).sort((a, b) => b[0]-a[0]).slice(0, 12)
  hits.replaceChildren(...found.map(([, [title, url, kind, page, text]], i) => {
    const a = make('a', {href: root + url, tabIndex: -1}, make('b', {className: kind, textContent: title}), make('i', {textContent: page === title ? '' : page}), make('span', {}, ...snippet(text, words)))
    return make('li', {id: `site-hit-${i}`, role: 'option'}, a)
  }))
  if (!found.length) hits.append(make('li', {className: 'none', textContent: `Nothing has “${box.value.trim()}” in it`}))
  hits.hidden = false
  box.setAttribute('aria-expanded', true)
  mark(0)
}
box.oninput = search
box.onfocus = () => { load().catch(() => {}); if (box.value) search() }
box.onkeydown = e => {
  if (e.key === 'ArrowDown') mark(at+1)
  else if (e.key === 'ArrowUp') mark(at-1)
  else if (e.key === 'Enter') $('[aria-selected=true] a', hits)?.click()
  else if (e.key === 'Escape') { close(); box.blur() }
  else return
  e.preventDefault()
}
hits.onclick = e => { if (e.target.closest('a')) setTimeout(close) }
document.addEventListener('click', e => { if (!e.target.closest('.find')) close(); if (!e.target.closest('.menu, #site-nav')) showMenu(false) })
document.addEventListener('keydown', e => {
  if (e.key === 'Escape') showMenu(false)
  if ((e.key === '/' && !e.target.closest('input, textarea')) || (e.key === 'k' && (e.ctrlKey || e.metaKey))) { e.preventDefault(); box.focus(); box.select() }
})
