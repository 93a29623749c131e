/** The record of a hold: what recovery does with the bhyve of a dead manager, and what proves a frozen guest. */
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import t, { type Test } from 'tap'
import { isFailure, loadNative } from '../../../dist/base/native.js'
import { jobs } from '../../../dist/worker/jobs.js'
import { processState } from '../../support/guards.js'
import { until } from '../../support/index.js'
import { list, MadeStage, nobody, store } from '../../support/stages.js'

/** A stopped process that stands for bhyve, and its stage with the record of a hold. */
async function heldStage(t: Test): Promise<{ pid: number; stage: MadeStage; directory: string }> {
  const child = spawn('sleep', ['600'], { stdio: 'ignore' })
  t.teardown(() => child.kill('SIGKILL'))
  const pid = child.pid ?? NaN
  process.kill(pid, 'SIGSTOP')
  await until(() => processState(pid) === 'stopped', 'the process is stopped')
  const status = loadNative().processStatus(pid)
  if (isFailure(status)) throw new Error('the process has ended')
  const directory = store(t)
  const writer = { ...nobody, pid, startedAt: status.startedAt }
  const stage = new MadeStage(directory, { poweroff: false, writer, name: 'x' })
  jobs.recordHold(stage.handle)
  return { pid, stage, directory }
}

void t.test(
  'recovery continues the process and keeps its stage until it can have completed its work',
  async (t) => {
    const { pid, stage, directory } = await heldStage(t)
    // bhyve has written nothing for an hour, because it was stopped.
    for (const file of ['ckp', 'ckp.kern', 'ckp.meta']) fs.utimesSync(stage.file(`in/${file}`), 1, 1)
    stage.release()
    list(directory)
    await until(() => processState(pid) === 'running', 'the process continues')
    t.equal(fs.existsSync(stage.file('in/ckp')), true, 'the stage is kept')
    t.equal(fs.existsSync(stage.file('hold')), false, 'the record is removed')
  },
)

void t.test('recovery after a power failure sends no signal, even if the pid is in use again', async (t) => {
  const { pid, stage, directory } = await heldStage(t)
  stage.reboot()
  list(directory)
  t.equal(processState(pid), 'stopped')
})

void t.test('a later process with the same pid gets no signal', async (t) => {
  const { pid, stage, directory } = await heldStage(t)
  jobs.recordWriter(stage.handle, { ...nobody, pid })
  stage.release()
  list(directory)
  t.equal(processState(pid), 'stopped')
})

void t.test(
  'a guest is proven frozen only by RAM that is not empty and metadata that are not complete',
  (t) => {
    const stage = new MadeStage(store(t), { poweroff: false })
    const proven = (): boolean => jobs.isStillFrozen(stage.handle)
    t.equal(proven(), false, 'complete metadata')
    const text = fs.readFileSync(stage.file('in/ckp.meta'), 'utf8')
    fs.writeFileSync(stage.file('in/ckp.meta'), text.slice(0, text.length / 2))
    t.equal(proven(), true, 'half of the metadata')
    fs.writeFileSync(stage.file('in/ckp.meta'), '')
    t.equal(proven(), true, 'no metadata yet')
    fs.truncateSync(stage.file('in/ckp'), 0)
    t.equal(proven(), false, 'no RAM yet')
    fs.rmSync(stage.file('in/ckp.meta'))
    t.equal(proven(), false, 'no metadata file')
    stage.release()
    t.end()
  },
)
