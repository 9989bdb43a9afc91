#!/usr/bin/env python3
"""Makes the RSA keys with extreme numbers that the tests use. Deterministic; keys are public: never
sign mail with them. Run in this directory."""
import base64, math, random

E = 65537
random.seed(6376)

def is_prime(n):
    if n % 2 == 0:
        return n == 2
    for small in range(3, 2000, 2):
        if n % small == 0:
            return n == small
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for _ in range(24):
        x = pow(random.randrange(2, n - 1), d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True

def prime(start, step, e=E):
    n = start | 1
    while not (math.gcd(e, n - 1) == 1 and is_prime(n)):
        n += step
    return n

def der_length(n):
    if n < 128:
        return bytes([n])
    octets = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets

def der(tag, content):
    return bytes([tag]) + der_length(len(content)) + content

def integer(n):
    return der(2, n.to_bytes(n.bit_length() // 8 + 1, "big"))

def write(name, p, q, e=E):
    d = pow(e, -1, math.lcm(p - 1, q - 1))
    numbers = [0, p * q, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p)]
    text = base64.b64encode(der(0x30, b"".join(map(integer, numbers)))).decode()
    lines = [text[i:i + 64] for i in range(0, len(text), 64)]
    with open(name + ".pem", "w") as out:
        out.write("-----BEGIN RSA PRIVATE KEY-----\n" + "\n".join(lines) + "\n-----END RSA PRIVATE KEY-----\n")

top = 2 ** 1024
# All limbs full.
high = prime(top - 1, -2)
high2 = prime(high - 2, -2)
write("limbs_full", high, high2)
write("limbs_full_p_less_than_q", high2, high)
# Nearly all limbs empty.
low = prime(2 ** 1023 + 1, 2)
write("limbs_empty_p_less_than_q", low, high)
write("limbs_empty", high, low)
sparse = prime(3 * 2 ** 1022 + 1, 2)
sparse2 = prime(3 * 2 ** 1022 + 2 ** 520 + 1, 2)
write("limbs_sparse", sparse2, sparse)
# Full and empty limbs in turn.
comb = sum((2 ** 52 - 1) << (104 * i) for i in range(10)) | 3 << 1022
comb2 = sum((2 ** 52 - 1) << (104 * i + 52) for i in range(9)) | 3 << 1022
write("limbs_in_turn", prime(comb, 2), prime(comb2, 2))
# What the lanes do not take: another exponent, primes of different sizes.
write("exponent_3", prime(random.getrandbits(1024) | 3 << 1022, 2, 3), prime(random.getrandbits(1024) | 3 << 1022, 2, 3), 3)
write("primes_unequal", prime(random.getrandbits(1040) | 3 << 1038, 2), prime(random.getrandbits(1008) | 3 << 1006, 2))
# Too small to sign with.
write("bits_1024", prime(random.getrandbits(512) | 3 << 510, 2), prime(random.getrandbits(512) | 3 << 510, 2))
# RSA-4096 with full limbs.
high = prime(2 ** 2048 - 1, -2)
write("bits_4096", high, prime(3 * 2 ** 2046 + 1, 2))
