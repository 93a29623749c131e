/** The progress of several calls at the same time. */
import t from 'tap'
import type { Progress } from 'bhyve-checkpoint'
import { ProgressDisplay, type Stream } from '../../dist/cli/progress_display.js'

const digesting = (name: string, bytes: number, elapsedMs = 0): Progress => ({
  ...{ vm: 'vm1', name, phase: 'digesting', bytes, totalBytes: 100, elapsedMs },
})

function displayOf(isTTY: boolean): { display: ProgressDisplay; written: () => string[] } {
  const texts: string[] = []
  const write = (text: string): boolean => texts.push(text) > 0
  const stream = { isTTY, columns: 80, write, on: () => undefined } as unknown as Stream
  return { display: new ProgressDisplay(stream), written: () => texts.splice(0) }
}

t.test('without a terminal, each call prints one line per phase', (t) => {
  const { display, written } = displayOf(false)
  const [a, b] = [display.call(), display.call()]
  for (const bytes of [0, 10, 20]) {
    a.show(digesting('a', bytes))
    b.show(digesting('b', bytes))
  }
  t.strictSame(written(), ['vm1: digesting\n', 'vm1: digesting\n'])
  a.show(digesting('a', 50, 30_000))
  t.match(written(), [/^vm1: digesting {2}0\.0 MiB of/], 'and one after half a minute')
  t.end()
})

t.test('on a terminal, the line belongs to one call until it is cleared or complete', (t) => {
  const { display, written } = displayOf(true)
  const [a, b, c] = [display.call(), display.call(), display.call()]
  a.show(digesting('a', 0))
  t.equal(written().length, 1)
  b.show(digesting('b', 0))
  t.strictSame(written(), [])
  display.clear()
  t.strictSame(written(), ['\r\u001b[K'])
  b.show(digesting('b', 50))
  c.show(digesting('c', 50))
  t.equal(written().length, 1)
  b.show(digesting('b', 100))
  c.show(digesting('c', 60))
  t.equal(written().length, 2, 'b has ended, although an earlier result keeps its own from being printed')
  b.show(digesting('b', 100))
  t.strictSame(written(), [])
  t.end()
})
