import t from 'tap'
import { defined } from '../../dist/base/defined.js'

t.test('defined: leaves out undefined properties and keeps the order of the others', async (t) => {
  const found = defined({ b: 1, none: undefined, a: null, zero: 0, empty: '', no: false })
  t.equal(JSON.stringify(found), '{"b":1,"a":null,"zero":0,"empty":"","no":false}')
  t.notOk('none' in found)
})
