/** The properties that a dataset keeps when a clone takes its name. */
import { property } from './names.js'
import { givenMountpoint } from './pools.js'
import { localValue, type Properties, type Property, valueOf } from './properties.js'

/** What a rollback has begun, and the properties that it changes before the clone exists. `-`: not local. */
export interface Intent {
  id: string
  isMounted: boolean
  canmount: string
  reservation: string
  refreservation: string
  /** Everything was put back, so the properties are the administrator's again. */
  isDone: boolean
}

const pattern = /^(\S+) (yes|no) (on|off|noauto|-) (\d+|-) (\d+|-)( done)?$/

export function formatIntent({
  id,
  isMounted,
  canmount,
  reservation,
  refreservation,
  isDone,
}: Intent): string {
  const parts = [id, isMounted ? 'yes' : 'no', canmount, reservation, refreservation]
  return [...parts, ...(isDone ? ['done'] : [])].join(' ')
}

export function readIntent(properties: Properties): Intent | undefined {
  const found = pattern.exec(localValue(properties, property.rollback) ?? '')
  if (found === null) return undefined
  const [, id = '', mounted, canmount = '-', reservation = '-', refreservation = '-', done] = found
  return {
    id,
    isMounted: mounted === 'yes',
    canmount,
    reservation,
    refreservation,
    isDone: done !== undefined,
  }
}

/** An earlier rollback that was given up in the middle has changed these properties already, so its record counts. */
export function intentFor(properties: Properties, id: string): Intent {
  const isMounted = valueOf(properties, 'mounted') === 'yes'
  const earlier = readIntent(properties)
  if (earlier?.isDone === false) return { ...earlier, id, isMounted: isMounted || earlier.isMounted }
  const own = (key: string): string => ownValue(properties.get(key)) ?? '-'
  return {
    id,
    isMounted,
    canmount: own('canmount'),
    reservation: own('reservation'),
    refreservation: own('refreservation'),
    isDone: false,
  }
}

function ownValue(found: Property | undefined): string | undefined {
  return found !== undefined && ['local', 'received'].includes(found.source) ? found.value : undefined
}

/** Those that the clone has from its snapshot, and those that the intent has. */
const notGiven = new Set<string>([
  'volsize',
  'volblocksize',
  'version',
  'utf8only',
  'normalization',
  'casesensitivity',
  'mlslabel',
  'encryption',
  'keyformat',
  'keylocation',
  'pbkdf2iters',
  'canmount',
  'reservation',
  'refreservation',
  property.rollback,
])
/** `zfs get -p` prints these numbers for `none`, but `zfs clone` does not accept them. */
const noneAsNumber: ReadonlyMap<string, string> = new Map([
  ['quota', '0'],
  ['refquota', '0'],
  ['reservation', '0'],
  ['refreservation', '0'],
  ['filesystem_limit', '18446744073709551615'],
  ['snapshot_limit', '18446744073709551615'],
])

/** All properties that the dataset does not inherit, as `name=value`. */
export async function cloneProperties(
  dataset: string,
  properties: Properties,
  { canmount, reservation, refreservation }: Intent,
): Promise<string[]> {
  const own = [...properties].flatMap(([key, found]) => {
    const value = notGiven.has(key) ? undefined : ownValue(found)
    return value === undefined ? [] : [[key, value] as const]
  })
  const saved = Object.entries({ canmount, reservation, refreservation }).filter(([, value]) => value !== '-')
  const given: string[] = []
  for (const [key, value] of [...own, ...saved]) given.push(`${key}=${await givenValue(dataset, key, value)}`)
  return given
}

async function givenValue(dataset: string, key: string, value: string): Promise<string> {
  if (key === 'mountpoint') return givenMountpoint(dataset, value)
  return noneAsNumber.get(key) === value ? 'none' : value
}
