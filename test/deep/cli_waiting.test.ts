/** What a command prints and waits for when it is stopped. */
import t from 'tap'
import * as api from 'bhyve-checkpoint'
import type { Context } from '../../dist/cli/command.js'
import { interruptible } from '../../dist/cli/waiting.js'

t.test('a stop during a rollback waits until the disks are back, and says so', async (t) => {
  const events: string[] = []
  const context = {
    api,
    values: { text: () => '1s' },
    client: { idle: () => Promise.resolve(void events.push('idle')) },
    interrupt: { listen: () => new AbortController().signal, received: 'SIGINT', exitStatus: 130 },
    output: {
      notice: (text: string) => events.push(text),
      failure: (_message: object, [text = '']: string[]) => events.push(text),
    },
  } as unknown as Context
  const stopped = (error: Error): Promise<number> =>
    interruptible(context, {
      doing: 'Restoring',
      start: () => Promise.reject(error),
      done: () => 0,
      left: {
        beforeStart: 'nothing was started',
        afterStart: 'bhyve was started',
        afterRollback: 'the disks are put back, and bhyve is not started',
      },
      isLeft: true,
      afterwards: () => Promise.resolve(void events.push('afterwards')),
    })
  const text =
    'Restoring: interrupted by SIGINT; the disks are put back, and bhyve is not started. Waiting until the disks are back'
  t.equal(await stopped(new api.AbortError('', undefined, true, true)), 130)
  t.strictSame(events.splice(0), [text, 'idle', 'afterwards'])
  const late = new api.CheckpointError('ERR_TIMEOUT', '', { begun: true, rollingBack: true })
  await t.rejects(stopped(late), { message: 'Restoring: timed out after 1s' })
  t.strictSame(events.slice(1), ['idle', 'afterwards'])
})
