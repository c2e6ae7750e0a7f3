"""What is in `server/deploy`, held against the linters of those who will read it, and against the
program itself: its flags, its ports, its probes."""

import importlib
import pathlib
import re
import subprocess
import sys
import types

import kubernetes_validate
import yaml

FOLDER = pathlib.Path(__file__).parents[2] / "server" / "deploy"

#: Of KServe's objects, the parts that are Kubernetes' own, and a kind that has them all.
PARTS_OF_PODS = ["containers", "volumes", "tolerations", "affinity", "imagePullSecrets"]


def documents(name):
    """The objects of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def lint(scripts):
    """Dockerfile and YAML by their own linters, which were installed into a folder."""
    subprocess.run([scripts / "hadolint", FOLDER / "Dockerfile"], check=True)
    files = sorted(FOLDER.glob("*.yaml"))
    subprocess.run([scripts / "yamllint", "-s", "-c", FOLDER / ".yamllint.yaml", *files],
                   check=True)
    print(f"ok    hadolint and yamllint: Dockerfile, {', '.join(file.name for file in files)}")


def is_kubernetes(document):
    """Kubernetes' schema knows every field of an object, and has all that it needs."""
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(document, version, strict=True)
    print(f"ok    {document['kind']} by Kubernetes' schema of {version}")


def kserve_models():
    """KServe's own package without what it needs to serve: its models alone."""
    found = next(pathlib.Path(folder) / "kserve" for folder in sys.path
                 if (pathlib.Path(folder) / "kserve" / "models").is_dir())
    package = types.ModuleType("kserve")
    package.__path__ = [str(found)]
    sys.modules["kserve"] = package
    models = types.ModuleType("kserve.models")
    models.__path__ = [str(found / "models")]
    sys.modules["kserve.models"] = models
    return models


def model_class(models, name):
    """The class of a model, from the file that is named for it."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    words = re.sub(r"^v(\d+)(alpha|beta)?(\d*)_", r"v\1\2\3_", words)
    try:
        return getattr(importlib.import_module(f"{models.__name__}.{words}"), name)
    except ModuleNotFoundError:
        return None


def is_kserve(models, value, kind, where):
    """Every field is one that KServe's model of that kind knows; its own classes go deeper."""
    listed = re.fullmatch(r"list\[(.*)\]", kind)
    if listed:
        for idx, one in enumerate(value):
            is_kserve(models, one, listed[1], f"{where}[{idx}]")
        return
    known = model_class(models, kind)
    if known is None:
        return
    fields = {known.attribute_map[name]: known.openapi_types[name] for name in known.attribute_map}
    for field, inner in value.items():
        if field not in fields:
            sys.exit(f"{where}: KServe's {kind} has no field {field}")
        is_kserve(models, inner, fields[field], f"{where}.{field}")


def pods_of_runtimes(document):
    """A runtime's containers and volumes, as a pod that Kubernetes would start for it."""
    spec = {part: document["spec"][part] for part in PARTS_OF_PODS if part in document["spec"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": document["metadata"], "spec": spec}


def containers():
    """All of them, each with where it is."""
    for name, path in [("deployment.yaml", ["spec", "template", "spec"]),
                       ("servingruntime.yaml", ["spec"])]:
        spec = documents(name)[0]
        for step in path:
            spec = spec[step]
        for container in spec["containers"]:
            yield name, container


def flags_exist(program):
    """The program knows every flag that it would be started with."""
    said = subprocess.run([program, "serve", "--help"], check=True, capture_output=True, text=True)
    known = set(re.findall(r"--[a-z0-9-]+", said.stdout))
    told = [(name, arg.split("=")[0]) for name, container in containers()
            for arg in container["args"] if arg.startswith("--")]
    command = re.search(r"^CMD (\[.*\])$", (FOLDER / "Dockerfile").read_text(), re.M)[1]
    told += [("Dockerfile", word) for word in yaml.safe_load(command) if word.startswith("--")]
    for name, flag in told:
        if flag not in known:
            sys.exit(f"{name}: lnserve serve has no {flag}")
    print(f"ok    {len(told)} flags are the program's")


def ports_and_probes():
    """Probes go to ports that are listened on; who drains is left the time."""
    for name, container in containers():
        flags = dict(arg[2:].split("=", 1) for arg in container["args"] if "=" in arg)
        listening = {int(flags[flag]) for flag in ["port", "grpc-port", "metrics-port"]
                     if flag in flags}
        ports = {port["containerPort"]: port.get("name") for port in container["ports"]}
        for port in ports:
            if port not in listening:
                sys.exit(f"{name}: nobody listens on port {port}")
        for kind in ["startupProbe", "readinessProbe", "livenessProbe"]:
            port = container[kind]["httpGet"]["port"]
            if int(flags["port"]) != port and ports[int(flags["port"])] != port:
                sys.exit(f"{name}: {kind} asks port {port}, the API is on {flags['port']}")
        leaving = int(flags["drain-notice"]) + int(flags["drain-timeout"])
        graces = [document["spec"].get("template", {}).get("spec", {})
                  | document["spec"].get("predictor", {}) for document in documents(name)
                  if document["kind"] in ["Deployment", "InferenceService"]]
        for grace in graces:
            if grace["terminationGracePeriodSeconds"] <= leaving:
                sys.exit(f"{name}: it is killed before it has drained, after {leaving} s")
        ready = container["readinessProbe"]
        if int(flags["drain-notice"]) < 2 * ready["periodSeconds"] * ready["failureThreshold"]:
            sys.exit(f"{name}: requests are refused before two checks have seen why")
    print("ok    ports, probes and grace periods")


def probes():
    """The paths that probes ask for."""
    return sorted({container[kind]["httpGet"]["path"] for _, container in containers()
                   for kind in ["startupProbe", "readinessProbe", "livenessProbe"]})


def check(program, scripts):
    """All of it."""
    lint(scripts)
    for document in documents("deployment.yaml"):
        is_kubernetes(document)
    models = kserve_models()
    runtime, service = documents("servingruntime.yaml")
    for document, kind in [(runtime, "V1alpha1ServingRuntime"),
                           (service, "V1beta1InferenceService")]:
        if model_class(models, kind) is None:
            sys.exit(f"KServe's package has no {kind}")
        is_kserve(models, document, kind, document["kind"])
        print(f"ok    {document['kind']} by KServe's models")
    is_kubernetes(pods_of_runtimes(runtime))
    flags_exist(program)
    ports_and_probes()
