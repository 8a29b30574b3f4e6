import { createPrivateKey, type KeyObject } from 'node:crypto';

/**
 * SIMULATION KEYS. The private keys of the simulated AMD root (ARK) and signing key (ASK), RSA-4096, made once for this
 * project and published with it on purpose, so that every simulated host has the same root and a verifier can be pointed
 * at it. They protect nothing, and nothing real may ever trust them.
 */
const ARK_PKCS8 = [
  'MIIJQgIBADANBgkqhkiG9w0BAQEFAASCCSwwggkoAgEAAoICAQCg3qewAkY1b6v9l9JqQGEl65kMLlE/G8oo6UKhmpSZgwa3Iz7WMnV01xcEgVUhxaMj',
  'TfZ0kmfEw113GHhA5muQwKltZjFtR2dkog6dloEP8J/BTrNJdsPATE8TYjtq4evBnnN8X3velq9RMI0VxJtAC292rvnxhRtcf9VbfpNpLoL/Z4gJeATa',
  'fV/RcqAAPhLS8x9HISwcfuIinVksL95xHt767z+gS0dPbkA40YA+V2wSkYAj91MU5hIvG3a/adTP5ZqSoJOMdjdq1Ce58iumevl/ZyCEw2Hew6Pj5LWr',
  '6VRDKBXQma9ldgPtbEDLtXkzcWV8HtAWdLrClsqIHyf3yg3CJCwuyfK130EgWOMx7OhiSArDbxdIoS//RTYB2MYtw6lKa8X86nD+M4uXlV9d9tbojXcg',
  'ALRQnF1WgBGu6ZltIKdcIWOvoh8uDlZTatu09O7oXJRkpgaqZ0bZ9LI3r7shjBxvfDZvDXCqHQKt4wvVRReLlg4CcLXy4KW1EyJRhlVJEOTgMfPt7zfC',
  '8sRFJ9cYt21Ob7gMb/g3Yi6ZORBl/5pgXeqDezVx1rxpqLxD6fDeOfmt9P8Kpa8dHhEKDNcZHfmsTJ1DcIPjI7TI4Q3Oioc5cr5HOLo+bgESlrAQPx6t',
  'vEW7a5BDN+rEo4H7KLihCrIgyPL3TU5elS0djQIDAQABAoICAAI9X1w1h+WcdqqBWuCRh8vuNg0KNwwRibspYwnBD0KwGF+XE5VwkeiTMKkzWMYipfHe',
  'Cilw1JXtepqa7vYUwmVU48PLAxl1P7Ge8DFBZDrrbxOTEi8Nz4D/PvzM2d/UCE/p8hjGjPQaKOCdp0ho9DIyoCk1m40nvOwI62V9w2hY1khfWDCtKMCK',
  'M6Becwi8Oukp3kldMAVJWFvCUSvEX3M3pBCeOwZ/2pzdP6X0d4951zgbkDGczHdGko6KPuXzpgIeY8xluAnIWpJEizVATSgt+NVm6bgkSHOAY0+CT2vQ',
  'XZTRLptfJgB1lNPqwizKS8clOmDwqxW1wQtOnw0na+T2W2v+A0Jjp1/SKYaw2/GVFYZMssFK/cmJii181q2fis/qGV4mtVoZ6Ue/5U2sw3kIhM628Lbh',
  '0sW85ZV/ORiF5ut0p1f2uQZt+qhLRJxaYCs7Wqcb/IKe9gr9D4xgQi59wQ1G5SZhPRNLz36fo+aH7qIoQ4YdyRW2D07tUshyc5qnu/2qZOzBQRBsoiZ+',
  'AclnX26XDdVL9uo8QjoHk0TW/a1IGYeFKr2V5vIX1m04hgGsZNIi4DGSHlrOF3/lolTKTd0hF2jCc2kgBNkU1Sjy3L6y6DdwTBT7eMB7qYVs0QjfI+1D',
  'lR5QyiABrU1nvaNsp8uXOa197bzDl4yiYdchAoIBAQDh4snQZ/3c0N5ztIzNYxRkJteqp1FGegOjHHeiNPf1BmhkirBONw266+GQqWRgqs2zxw6Hrpze',
  'VIRqeWKCSqnB3H9iYWPGVskulR5TqjEgkJaozqbJdxbPBsPeC6KCR+7hOdlJCeW2RWqc8oys/73MupIVXXLRBXqXzhVI6lbZNTGNs5GPAK0JygqjIj5a',
  '+Sx+dh2nVkHg67SNLjrEu4r/Va/qxBFO/l/BdTDjp/cqUu7udK1V3TZkOkLyyEN9bQJZ+tkDZzXJacudhv3LOkgMwzGaigA4fB/s3AU1UY8girFF3xdl',
  'oZ+vr3WtZB+n84nO+wfzy/n7jXx3UupHoBMtAoIBAQC2UPHHx2OUDK4Yz9OWbsdoUimTV84WExyyLgHfpLOx4hFmq/Mhf9ZaIPKdV3SoEtkDr208GzAe',
  'eR2GWQ/dAnj8hO0TzaGy99CxRFIo0fndZpHBunpgtK4RK6eMbvTIfWelAvpdTCxDwjWrEBUfgtc4WIECZKgih92BOWanLJHTgZxyRWIqCSLgRygbJZnf',
  'IenjmYZPcuCQ7V2aTVX1uqauTHi6kBQHX0vKxb10RhOX3Wp5MXDDIvoi4P+ElFbugNACzkTbnfAMuj5Qfcz0wTXe20Ebx+AorOKyljObMLA+K747XRLA',
  'axkxS+i2jtBYexRjO26FsDVcnaL56yycMy/hAoIBAQC/9cjn0NgOJXpF/fOCP2b+zXuNzO7m453fqbuJH1Zw5eclOi8l6OdEKFziYPGqrLxuwQT6DUvG',
  'LTDygwFSFD07QDUI2BbAYNRLP/Iry4BAWl+OST+4CfpaKTeepWiPKq44vL6IsV6DjW5SvlUKV7NmHk8y1N1UAEH0a+/urSbtI6Ve9HEIg9yJayerBtjS',
  '2toTBjGhGU6W4/fl2pmawn4XCyyaZ9EFvmqFrx/C9+S2FRBzmLgNNhaZCmIGjGW+WzsaWHC/0aAF8GBXGHbplDfSkLbAy/HwDpva4AeVDiCB2RtZc4Mg',
  'nT9lP8jTdzjns7EzMmXJq1hfjBdwGAh8oe5pAoIBAGU/IHZMsW0neYuH5r4U+SJi9nm/+k/h/z6oNBwp0C0KGZXGCfhhkP1ubK2aQsuP4/qa8nO9uYRC',
  'yHWygg+/bsb1Xt9vg8vquXeoNGQ876DXdDx8vbd0v3IDp0Fi4QdyNRu7QqSLR829TaaZANIGDFVbORHGKmU6xHUeFnbiVn157hK7m18ywa6BdbFVuVTj',
  '9YqS2LbIWhPB7ghhyEn1hNko2KbqmmTZtDKAi8zFmd3tdVKmdTO4+eZiwyOyaXB8EohsWmsIE6ZNy4tRwX9uyObhJhAyeLa+BAsfRLt7V3S/QB6hemdn',
  'Uo9A05SGTQfGGjVdbOxLRecQF9DonFaGSqECggEAB1CWDDaggo5zzydWYY+9yUoGDRTBS8eAqEAvwRzXRz5ETA+JK+CnZCz2uGgnWF4WBGZFd43gqLVf',
  'UW2+f2EFFkH81CA/zEerqm39gk/F2BgOnjFsNEY33Roz374P/bdFSwZPmY2I3m8F2zjj5A1995pUuK3s0bvOOaF9rCnngeRgrt+Oee3hqEPPthheLWOE',
  'cz8FUZdcCorBvFlXiDfUXGvH2AMu3PA/4ADKkUiZ/Rsv1Uemx+Hl9N2xhKuePgiveqYymu+RLFzUXv9BwxjUezp5UwdOPhRU2I0kh0QdLf+0g2GAJQ7Z',
  '81C0NEI+kcsQDuYO6feqclCigD5T25rz4g==',
];

const ASK_PKCS8 = [
  'MIIJQQIBADANBgkqhkiG9w0BAQEFAASCCSswggknAgEAAoICAQDTSDbFooZreLA48zm4Ul4FDxUBCC745v7xenuHdVa62P+CtheLThPZGS7gdH32A812',
  '0MdWtizo1dwSdpNbjvOKqS7Ww5P7q/AXKBLWcuVd4KBYV1w+ydLhAw9ESal5DnR3H0abp1eKXuL8OvjO4sm8PoHxbhIkmG3UpBJhCklkbPlifj7svX0D',
  'OOugBL9ziSzh6h1Hj0AUUtnHKDmOG+bRr3rIhpcNBwCh4ElLe/AYEE9XGXEb7AtdrykfIx8mn4zh5P5O3Jm2V8GdL1lPnOa2odAbBQX6lWagJPw2udmX',
  '9POI9upGNnN7kPXk7mWZaSlUSkj6xzi3RB9vd+eYRz0itUzuwX0XXy2uyrdMB2sEk8CmPj9UpDCKg22dYIwrXM+761HNibiFJxdRTvF5z5oi5NmXKTfT',
  't0fm91faKVe5Fwz9KF0oqv6Ah/+LlbBOMZEA5H4Dk90ACKvc9xAqWYXYG9Fi8BlEEcaf+balsgsxdr5s+0iung8Xt9BdHGuB5YBe0OV9VXd00ns3J47U',
  'JY+/Kbf6rQ8RQgntb8zKmaoCXriaawuG91NKY9pbtxXDbpnNneeAmtnCZgWHfzNL/ph8/5qcPIdAPxVM3I64B4vW6aMTsRJPrLxAadYWFwpP86wHgCAt',
  '6ZA7h+rfSg4pWkJbi9PIxiHlXg4QubMnIh4mQQIDAQABAoICAAXqSRjHRiPFAiuFATwgJ7hU6dPQoaaHqpJyiTnzkrsaU0x6uj3k4KTAyg2AC2z/YiGq',
  'ApOyl98oqh+09McQ4XAD0K8z9G0czSTr0vuwpavnO5v/jaJHIp2YuSUiehF84m05mZ+m26pAwfJ5ePDrW+Ymmpsal5zRTO1hrs9LUz7R13lOwyab/z+P',
  'aNbe/ShwGirkw982ky7iey0Civp33OJo2xtZO8pCRH3ztl+b857L2ZnM2Twks5SC0HgaAs+xMre6ElXdQpsumanDuyiRwiqRrQ6tmUNQypnQEUTbtwwk',
  'YCtY7NoMgRcP+ddoBn2JGn5s8j49pMCKQmZLtUbf0zX8EJJsmLw3zc2bfxsm4J7PWR61AwgHKzvqiQI7bQtyp+mS2wLKYkT3JFfFlw/5lAm9itmQhPdV',
  'Lnts9r+hfpoIF/mS53YVt2RaknMCk5jhWSf7jhJeeHCQAVo/A34HR8rVTz5iv0QIPl5Fy4YFgr5ynwCqTj5Kp4YfmqkgnRP8XaaXGsO0vJPfm2catqTq',
  'wE7IYjNzmtRpImYsGFqscpvFAlsvySv+FN4Blq4/h6lsswqAYMiU7VJmAFfGKBcultLrVSGdXF/PqAzFORP9bU3h934FGDfqtT+LPGrNOLQMdPHih7xL',
  'mrxdYQUpq+1kOzJzkantNQzhHMoYUXSklrlxAoIBAQD31l8cbfCx4QGftnzht/8w3But6323ZUHdlvkLKmhwqJpKTFTopSpfSdwAwtrAuiuyNZTM+Foy',
  'y2eFOOuHmlqDnsQOxleLcDfohr9iZYeh3SSov1+7NwNjrZPIyOwesu8XolqAL/tP2Xt6l83ZcQeL91fAgvbOiH0X4WN5PG9Z5RbyMzEZIjE51NQ+ml2p',
  'T3KhHk8Tg3EAvJ/8JxJeDs+BEauciNH4qwBkkbY6enCA6ejXMgsieNpKXfoxv1dQT/zmxXIBZ8nfV1opms8Ik36cm7pkqHyZz8TqUjBGDm+oIn3xGlVC',
  'BnzA0qxLavjiPwn45oexr1KeNIYysgaxSkURAoIBAQDaPaDThkcnhPgexhV1+YYwSBM3uQhHnRknmyZp59OVw3Y/Z2n5+FWNTszShHRKuFTOm2DzFhmw',
  'CyeY0Hr8J1ERMWJ+jkx7KkUsu3hIK7qYl5Yypo5+RbpyuWnJdxpDrHtRqThHFFT5KCH4mH1pl2e8eupRYRTlYNdr+3cQ4cejOmM5fFZVY+zCtDjYQ7zd',
  'ERdxureDN5zyR5DBXfv/0NmkMb/GrGLDL/+jHqM+D3CzhyRiWfjEgszoegUi2OpAolXIMsRB8ZQj/iyQNw1rcZUw/j8rVJbRkZdTmwS+v8p43a79SnbK',
  'x+qFFLkD8blEZyhFzDJIPYHaYRyjKehxIA4xAoIBAEw/zQVPIcVoR3qex28ej8m1fmKU2BnLcmc9YqO3yWgXx1higaEN56pna+NkD69J19W9PGmPYxjL',
  'ka7gIz6WE5D5ELLG/PoubVUB1/Hq8L6w7e1o64gK1eUd6yDUCCktvfeUgKl9maEodR/zgmaKqtq6H2pgIJTMU0g8lMEhAdUzcUrUyx9DcMetHhugnH5R',
  'rh+51nRXdTXX0pTeZH1Bqz+3cwf25DrQSY+ncNwu/Vv8GyHSCLDzY52LqkUR7EgOQ+2wA3JBP0+SbW/tbBLkZgjCtKbxW1xrGtdIsAdtu5aL/hlmk6J7',
  'ongkmNOfNrFM2cGVE1xsZ0u7NypzsTFsezECggEAFRUdAzIWj5fFzFtAWXw4XVOpH5ntVdW0R2IyjMqLYw1Vz/wyfaZixVrWaIPJJCq4bpkN/Y2l/56k',
  'PZvuNYuqxilqJWWjt8Y2loKptPcceH80UEJMw6ACyfBlasPpsp3n79SUDjHFn6gj1/sLKnco20lYd3IUbbA0P0c0klntSjRqv3PmdytHBOwaDbJFfWmY',
  'RTFPZwqpS7JkJnnozSakz7rKluuyQr7RSDW+eVFOhtlIR4P/hyRHnTGka2BfCM1l0ggtc11d/Tghn/Dhh/6Z9fipq4rpYudYogf4pmCqs5BexjM6VI6J',
  'dj+xO9NPHW+FsXBvbxEaCTmWZaC3xq3dEQKCAQB/lTO4LOuo5oHxb9XjfgAG/vyiAbmahJfk67kd94yiK4sU4iwIr/ihyqX3geiG6+EorIA5hAh5Z5th',
  'nPGR76cWefJyvCGSl/lItKqL1GgDi+cZ7HONW7QopumhuuuXg4JQW5EiTlRZ75x8duapaM8t6de7p+lyQUdgx8bHLbXWWttOzR88bLn+XaarCnwRjBBL',
  'I/uNk/+xHzE382/267A7b0oChLRUB3eEM+TDX1uAPxaiR+L3MPBDQJy1xW/FOXnqouVpIDCEQTRfC+YzuW6IY7w27MZCHAw4IGccDfHE3wIcPp189rh8',
  '33LPUOEai2Akv3E7QysIWTubmkXJzSOg',
];

const load = (lines: readonly string[]): KeyObject =>
  createPrivateKey({ key: Buffer.from(lines.join(''), 'base64'), format: 'der', type: 'pkcs8' });

/** The simulated root key. Loading it takes time, so keep it. */
export const loadArk = (): KeyObject => load(ARK_PKCS8);

/** The simulated signing key, which endorses chips. */
export const loadAsk = (): KeyObject => load(ASK_PKCS8);
