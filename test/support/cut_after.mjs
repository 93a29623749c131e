// A stand-in for ssh that cuts the connection instead of passing on a message of this type.
// Usage: cut_after.mjs <type> <host> <command>
import { spawn } from 'node:child_process'

const [type, , command] = process.argv.slice(2)
const child = spawn('sh', ['-c', command], { stdio: ['pipe', 'pipe', 'inherit'] })
child.stdout.pipe(process.stdout)
child.on('exit', () => process.exit())
process.stdin.on('data', (bytes) => {
  if (bytes.includes(`"type":"${type}"`)) process.exit()
  child.stdin.write(bytes)
})
process.stdin.on('end', () => child.stdin.end())
