/** Makes findings. */
import type { Finding, FindingCode } from '../../base/finding_types.js'

/** The finding of a check that found nothing to do. */
export function ok(code: FindingCode, message: string): Finding {
  return { level: 'ok', code, message }
}

export function warning(code: FindingCode, message: string, advice: string): Finding {
  return { level: 'warning', code, message, advice }
}

export function problem(code: FindingCode, message: string, advice: string): Finding {
  return { level: 'problem', code, message, advice }
}

/** Adds the VM to findings. */
export function ofVm(vm: string, findings: readonly Finding[]): Finding[] {
  return findings.map((finding) => ({ ...finding, vm }))
}
