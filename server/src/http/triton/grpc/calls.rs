//! Every call of the service, and where it is answered.

use tonic::{Request, Response, Status, Streaming};

use super::super::metadata::{EXTENSIONS, SERVER};
use super::super::models;
use super::protocol::grpc_inference_service_server::GrpcInferenceService;
use super::protocol::*;
use super::{Service, infer, model, no_shared_memory, operate, stream};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    type ModelStreamInferStream = stream::Responses;

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.app.ready().is_ok() }))
    }

    async fn model_ready(&self, asked: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = asked.into_inner();
        let ready = models::is_ready(&self.app, &name, model::named(&version));
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Answer<ServerMetadataResponse> {
        Ok(Response::new(ServerMetadataResponse {
            name: SERVER.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn model_metadata(
        &self,
        asked: Request<ModelMetadataRequest>,
    ) -> Answer<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = asked.into_inner();
        model::metadata(&self.app, &name, &version).map(Response::new)
    }

    async fn model_infer(&self, asked: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        infer::infer(&self.app, asked).await
    }

    async fn model_stream_infer(
        &self,
        asked: Request<Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        Ok(Response::new(stream::serve(&self.app, asked)))
    }

    async fn model_config(
        &self,
        asked: Request<ModelConfigRequest>,
    ) -> Answer<ModelConfigResponse> {
        let ModelConfigRequest { name, version } = asked.into_inner();
        model::config(&self.app, &name, &version).map(Response::new)
    }

    async fn model_statistics(
        &self,
        asked: Request<ModelStatisticsRequest>,
    ) -> Answer<ModelStatisticsResponse> {
        let ModelStatisticsRequest { name, version } = asked.into_inner();
        model::statistics(&self.app, &name, &version).map(Response::new)
    }

    async fn repository_index(
        &self,
        asked: Request<RepositoryIndexRequest>,
    ) -> Answer<RepositoryIndexResponse> {
        operate::index(&self.app, asked.get_ref()).map(Response::new)
    }

    async fn repository_model_load(
        &self,
        asked: Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        operate::load(&self.app, asked.get_ref())?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        asked: Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        let asked = asked.into_inner();
        operate::check_repository(&asked.repository_name)?;
        let unloaded = models::set_loaded(&self.app, &asked.model_name, false);
        unloaded.map_err(super::status::status)?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<SystemSharedMemoryStatusRequest>,
    ) -> Answer<SystemSharedMemoryStatusResponse> {
        Ok(Response::new(SystemSharedMemoryStatusResponse::default()))
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        no_shared_memory()
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        no_shared_memory()
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<CudaSharedMemoryStatusRequest>,
    ) -> Answer<CudaSharedMemoryStatusResponse> {
        Ok(Response::new(CudaSharedMemoryStatusResponse::default()))
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Answer<CudaSharedMemoryRegisterResponse> {
        no_shared_memory()
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<CudaSharedMemoryUnregisterResponse> {
        no_shared_memory()
    }

    async fn trace_setting(
        &self,
        asked: Request<TraceSettingRequest>,
    ) -> Answer<TraceSettingResponse> {
        operate::trace_settings(&self.app, asked.into_inner()).map(Response::new)
    }

    async fn log_settings(
        &self,
        asked: Request<LogSettingsRequest>,
    ) -> Answer<LogSettingsResponse> {
        operate::log_settings(&self.app, asked.into_inner()).map(Response::new)
    }
}
