// The command line, run by a user who may do nothing.
if (process.getuid() === 0) {
  process.setgid(65534)
  process.setuid(65534)
}
await import('../../dist/cli/main.js')
