// Lists a store with CBSD's layout as another user.
import { cbsdLayout, createClient } from 'bhyve-checkpoint'

const [workdir, uid] = process.argv.slice(2)
process.setgid(Number(uid))
process.setuid(Number(uid))
const client = createClient({ checkpointDirectory: cbsdLayout({ workdir }) })
const stored = await client.listStored()
const listed = await client.listCheckpoints('ours')
console.log(JSON.stringify(stored), JSON.stringify(listed.map(({ name, state }) => `${name} ${state}`)))
