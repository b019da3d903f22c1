"""`/v1/tenants`: customers, made and erased by the operator."""

from anyio import to_thread
from fastapi import APIRouter
from fastapi.responses import JSONResponse

from prefix_store.tenants import Tenant, TenantLimits
from service.deps import AdminDep, PartsDep, deletion, listed, page, shown
from service.erasing import erase
from service.schemas import TenantBody
from service.shapes import Page, TenantMade, TenantShown

router = APIRouter(tags=["tenants"])

EXAMPLE = {
    "id": "ten-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "name": "acme",
    "object": "tenant",
    "created_at": 1767225600,
    "limits": {
        "max_queued": 256,
        "max_jobs": 1000,
        "max_dataset_bytes": 1 << 30,
        "requests_per_minute": None,
        "tokens_per_day": None,
    },
    "joint_training": False,
}


def tenant_json(tenant: Tenant) -> TenantShown:
    """A tenant with its limits."""
    return {
        "id": tenant.id,
        "name": tenant.name,
        "object": "tenant",
        "created_at": int(tenant.created_at),
        "limits": {
            "max_queued": tenant.max_queued,
            "max_jobs": tenant.max_jobs,
            "max_dataset_bytes": tenant.max_dataset_bytes,
            "requests_per_minute": tenant.requests_per_minute,
            "tokens_per_day": tenant.tokens_per_day,
        },
        "joint_training": tenant.joint_training,
    }


@router.post("/v1/tenants", responses=shown({**EXAMPLE, "api_key": "pfx_live_..."}, 409))
def create_tenant(parts: PartsDep, admin: AdminDep, body: TenantBody) -> TenantMade:
    """Make a tenant; its first key is shown once."""
    given = body.limits.model_dump(exclude_none=True) if body.limits is not None else {}
    tenant, key = parts.store.tenants.create(
        admin, body.name, TenantLimits(**given), joint_training=bool(body.joint_training)
    )
    return {**tenant_json(tenant), "api_key": key}


@router.get("/v1/tenants", responses=shown(listed(EXAMPLE)))
def list_tenants(parts: PartsDep, admin: AdminDep) -> Page[TenantShown]:
    """All tenants, by name."""
    found = [tenant_json(tenant) for tenant in parts.store.tenants.list(admin)]
    return page(found, len(found))


@router.delete(
    "/v1/tenants/{tenant_id}",
    responses=deletion({"id": "ten-...", "object": "tenant", "deleted": True, "purge": "done"}, 404),
)
async def delete_tenant(parts: PartsDep, admin: AdminDep, tenant_id: str) -> JSONResponse:
    """Erase a tenant with everything that is its."""
    begun = await to_thread.run_sync(parts.store.tenants.erase, admin, tenant_id)
    return await erase(parts, begun, tenant_id)
