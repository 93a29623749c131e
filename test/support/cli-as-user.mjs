// Runs the command line as a user without permissions.
if (process.getuid() === 0) {
  process.setgid(65534)
  process.setuid(65534)
}
await import('../../dist/cli/main.js')
