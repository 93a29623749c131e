/**
 * A message of a move is lost, arrives twice or late, or the connection is cut before or after it. At every moment
 * exactly one host can be made to run the VM, and the next calls move it. test/deep/move/move_messages.test.ts tests
 * more of them.
 */
import t from 'tap'
import { strikeMessages } from '../support/move_faults.js'

t.test('some messages, with some faults', (t) => strikeMessages(t, 20))
