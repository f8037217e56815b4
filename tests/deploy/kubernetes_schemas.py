"""The schemas that manifests are held to: those of Kubernetes, and of two foreign kinds the parts that we use."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate

from tests.deploy.kustomize import Resource

VERSION = "1.32"
"""Of the schemas; the gateways' pause before they stop needs 1.30."""

# In our own words: the parts of the two foreign kinds that we use, and nothing else.
_NAME = {"type": "string", "pattern": "^[a-z0-9-]+$"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_SCALING = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "stabilizationWindowSeconds": {"type": "integer", "minimum": 0, "maximum": 3600},
        "policies": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "value", "periodSeconds"],
                "properties": {
                    "type": {"enum": ["Pods", "Percent"]},
                    "value": {"type": "integer", "minimum": 1},
                    "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
                },
            },
        },
    },
}
FOREIGN: dict[str, dict[str, Any]] = {
    "keda.sh/v1alpha1 ScaledObject": {
        "type": "object",
        "additionalProperties": False,
        "required": ["scaleTargetRef", "triggers"],
        "properties": {
            "scaleTargetRef": {"type": "object", "additionalProperties": False, "properties": {"name": _NAME}},
            "minReplicaCount": {"type": "integer", "minimum": 1},
            "maxReplicaCount": {"type": "integer", "minimum": 1},
            "pollingInterval": {"type": "integer", "minimum": 1},
            "fallback": {
                "type": "object",
                "additionalProperties": False,
                "required": ["failureThreshold", "replicas"],
                "properties": {
                    "failureThreshold": {"type": "integer"},
                    "replicas": {"type": "integer"},
                    "behavior": {
                        "enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
                    },
                },
            },
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "horizontalPodAutoscalerConfig": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "behavior": {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {"scaleDown": _SCALING, "scaleUp": _SCALING},
                            }
                        },
                    }
                },
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["type", "metadata"],
                    "properties": {
                        "type": {"enum": ["cpu", "prometheus"]},
                        "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
                        "metadata": _TEXTS,
                    },
                },
            },
        },
    },
    "monitoring.coreos.com/v1 PodMonitor": {
        "type": "object",
        "additionalProperties": False,
        "required": ["selector", "podMetricsEndpoints"],
        "properties": {
            "selector": {"type": "object", "additionalProperties": False, "properties": {"matchLabels": _TEXTS}},
            "podMetricsEndpoints": {
                "type": "array",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "port": _NAME,
                        "path": {"type": "string"},
                        "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                    },
                },
            },
        },
    },
}


def validate(resource: Resource) -> None:
    """Hold a resource to the schema of its kind."""
    foreign = FOREIGN.get(f"{resource['apiVersion']} {resource['kind']}")
    if foreign is None:
        kubernetes_validate.validate(resource, VERSION, strict=True)
    else:
        jsonschema.validate(resource["spec"], foreign)
