/** As test/move/move_faults.test.ts. `MOVE_FAULTS=1` tests every message with every fault, which takes a minute. */
import t from 'tap'
import { strikeMessages } from '../../support/move_faults.js'

t.setTimeout(300_000)

t.test('messages, with faults', (t) => strikeMessages(t, process.env.MOVE_FAULTS === undefined ? 3 : 1))
