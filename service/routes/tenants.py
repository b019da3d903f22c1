"""`/v1/tenants`: customers, made and erased by the operator."""

from dataclasses import asdict
from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from prefix_store.tenants import Tenant, TenantLimits
from service.deps import AdminDep, PartsDep, page, shown
from service.erasing import erase
from service.schemas import TenantBody

router = APIRouter(tags=["tenants"])

EXAMPLE = {"id": "ten-4uTnqvJ0Zq1rVbY7eXo2Ks", "object": "tenant", "name": "acme", "created_at": 1767225600}


def tenant_json(tenant: Tenant) -> dict[str, Any]:
    """A tenant with its limits."""
    limits = asdict(tenant)
    known = {name: limits.pop(name) for name in ("id", "name")}
    created, joint = int(limits.pop("created_at")), limits.pop("joint_training")
    return {**known, "object": "tenant", "created_at": created, "limits": limits, "joint_training": joint}


@router.post("/v1/tenants", responses=shown({**EXAMPLE, "api_key": "pfx_live_..."}))
def create_tenant(parts: PartsDep, admin: AdminDep, body: TenantBody) -> dict[str, Any]:
    """Make a tenant; its first key is shown once."""
    given = body.limits.model_dump(exclude_none=True) if body.limits is not None else {}
    tenant, key = parts.store.tenants.create(
        admin, body.name, TenantLimits(**given), joint_training=bool(body.joint_training)
    )
    return {**tenant_json(tenant), "api_key": key}


@router.get("/v1/tenants", responses=shown({"object": "list", "data": [EXAMPLE], "has_more": False}))
def list_tenants(parts: PartsDep, admin: AdminDep) -> dict[str, Any]:
    """All tenants, by name."""
    found = [tenant_json(tenant) for tenant in parts.store.tenants.list(admin)]
    return page(found, len(found))


@router.delete(
    "/v1/tenants/{tenant_id}", responses=shown({"id": "ten-...", "object": "tenant", "deleted": True})
)
async def delete_tenant(parts: PartsDep, admin: AdminDep, tenant_id: str) -> JSONResponse:
    """Erase a tenant with everything that is its."""
    begun = await to_thread.run_sync(parts.store.tenants.erase, admin, tenant_id)
    return await erase(parts, begun, tenant_id)
