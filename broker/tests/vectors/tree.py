"""Writes tree.json: roots and proofs of RFC 6962 trees by an independent implementation.

    python3 -m venv venv && venv/bin/pip install pymerkle==7.0.0
    venv/bin/python broker/tests/vectors/tree.py > broker/tests/vectors/tree.json

Entry n of every tree is the decimal text of n.
"""

import json

from pymerkle import InmemoryTree

SIZES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 15, 100, 255, 256, 257, 511, 512, 1000, 65536, 65537, 70000]
INCLUSION = [(0, 1), (0, 5), (2, 5), (4, 5), (6, 7), (255, 256), (256, 257), (100, 1000), (65535, 65536), (65536, 65537), (12345, 70000), (69999, 70000)]
CONSISTENCY = [(1, 2), (3, 5), (4, 5), (6, 7), (7, 8), (255, 257), (256, 257), (100, 1000), (65536, 70000), (65537, 70000), (69999, 70000)]


def tree(first, end):
    grown = InmemoryTree(algorithm="sha256")
    grown.append_entries([str(n).encode() for n in range(first, end)])
    return grown


def root(first, end):
    return tree(first, end).get_root().hex()


def main():
    trees = {size: tree(0, size) for size in SIZES}

    # pymerkle counts from 1, and puts the leaf first, which RFC 6962 leaves out.
    def inclusion(index, size):
        path = trees[size].prove_inclusion(index + 1, size).serialize()["path"]
        assert path[0] == trees[size].get_leaf(index + 1).hex()
        return path[1:]

    # Its proofs of consistency have a form of their own: this is PROOF of RFC 6962, section 2.1.2, over its roots.
    def consistency(old, new, first=0, is_known=True):
        if old == new:
            return [] if is_known else [root(first, first + new)]
        middle = 1
        while middle * 2 < new:
            middle *= 2
        if old <= middle:
            return consistency(old, middle, first, is_known) + [root(first + middle, first + new)]
        right = consistency(old - middle, new - middle, first + middle, False)
        return right + [root(first, first + middle)]

    roots = {size: grown.get_root().hex() for size, grown in trees.items()}
    print(json.dumps({
        "roots": [{"size": size, "root": root} for size, root in roots.items()],
        "inclusion": [{"index": i, "size": n, "path": inclusion(i, n)} for i, n in INCLUSION],
        "consistency": [{"old": m, "new": n, "path": consistency(m, n)} for m, n in CONSISTENCY],
    }, indent=1))


if __name__ == "__main__":
    main()
