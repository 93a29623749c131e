/** Lines over two logarithmic axes, as SVG. Proportional growth is a straight line. */
const width = 720
const height = 420
const box = { left: 64, right: 500, top: 40, bottom: 372 }
const colours = ['#1b6ca8', '#c0392b', '#2e8b57', '#8e44ad', '#d98200', '#555555', '#16a085']

export function lineChart({ title, x, y, series }) {
  const points = series.flatMap((one) => one.points)
  const across = axis(
    points.map(([value]) => value),
    box.left,
    box.right,
  )
  const up = axis(
    points.map(([, value]) => value),
    box.bottom,
    box.top,
  )
  const parts = [
    text(box.left, 22, title, 'font-size="15" font-weight="bold"'),
    ...across.ticks.map((tick) => grid(across.at(tick), box.top, across.at(tick), box.bottom)),
    ...up.ticks.map((tick) => grid(box.left, up.at(tick), box.right, up.at(tick))),
    ...across.ticks.map((tick) => text(across.at(tick), box.bottom + 16, tick, 'text-anchor="middle"')),
    ...up.ticks.map((tick) => text(box.left - 6, up.at(tick) + 4, tick, 'text-anchor="end"')),
    text((box.left + box.right) / 2, box.bottom + 36, x, 'text-anchor="middle"'),
    text(box.left - 48, box.top - 8, y, ''),
    ...series.flatMap((one, index) => line(one, index, across, up)),
  ]
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${width}" height="${height}" fill="white"/>`,
    ...parts,
    '</svg>\n',
  ].join('\n')
}

/** Maps values to positions between two edges, and lists the round numbers among them. */
function axis(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)].map((value) =>
    Math.log10(Math.max(value, 1e-6)),
  )
  const least = low - 0.05
  const most = high + 0.05
  const at = (value) => from + ((Math.log10(Math.max(value, 1e-6)) - least) / (most - least)) * (to - from)
  const ticks = []
  const steps = most - least > 2.5 ? [1] : [1, 2, 5]
  for (let power = Math.floor(least); power <= Math.ceil(most); power++) {
    for (const step of steps) ticks.push(Number((step * 10 ** power).toPrecision(3)))
  }
  return { at, ticks: ticks.filter((tick) => Math.log10(tick) >= least && Math.log10(tick) <= most) }
}

function line({ name, points }, index, across, up) {
  const colour = colours[index % colours.length]
  const path = points.map(([x, y]) => `${across.at(x).toFixed(1)},${up.at(y).toFixed(1)}`)
  const marks = path.map((point) => {
    const [x, y] = point.split(',')
    return `<circle cx="${x}" cy="${y}" r="3" fill="${colour}"/>`
  })
  const legend = box.top + 10 + index * 18
  return [
    `<polyline points="${path.join(' ')}" fill="none" stroke="${colour}" stroke-width="2"/>`,
    ...marks,
    `<line x1="${box.right + 12}" y1="${legend - 4}" x2="${box.right + 28}" y2="${legend - 4}" stroke="${colour}" stroke-width="3"/>`,
    text(box.right + 34, legend, name, ''),
  ]
}

function grid(x1, y1, x2, y2) {
  return `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" stroke="#dddddd"/>`
}

function text(x, y, words, more) {
  const escaped = String(words).replace(/&/g, '&amp;').replace(/</g, '&lt;')
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escaped}</text>`
}
